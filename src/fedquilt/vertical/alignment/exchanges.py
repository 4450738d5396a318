"""The alignment of all parties' rows, as exchanges that are done once before a method's own.

The active party is the server; the passive parties are clients. Each holds ids ``x`` of its rows; ``a`` and ``b`` are
the active and a passive party's keys, and ``a x`` is an id blinded with one, see ``blinding``.

align-keys     passive  makes its key, tells its number of ids
               active   makes its key, sorts its a x
align-ids      down     a x                                             (private set intersection only)
               passive  b x of its own rows, sorted, and b a x in the order of a x
               active   a b x of the passive party's, to compare with b a x
align-places   down     where the common rows stand in the passive party's sorted list
               passive  its own rows in that order

Blinded ids are sorted, which hides the order of a file: the order of values that a secret key makes says nothing. The
common order is that of the ids' SHA-256, which the active party alone computes and never sends: it is the same in every
run, and tells each party only about rows whose ids it holds.

Common rows are those that all parties of the first cohort hold; all of them must answer. A party that comes later is
aligned when it comes, by the same exchanges with the common rows' ids in place of all of the active party's. They do
not change then: the late party's row is -1 where it does not hold one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

from fedquilt.core.errors import RoundError, TrainingError, WireError
from fedquilt.core.method import Exchange
from fedquilt.core.types import ClientId, Memory, Order, Params, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker
from fedquilt.data.ids import MAX_IDS
from fedquilt.vertical.alignment.blinding import BLINDINGS, Blinding
from fedquilt.vertical.alignment.rows import (
    as_bytes,
    as_rows,
    as_tensor,
    common_order,
    received_bytes,
    received_places,
    repeats,
    sorted_rows,
)

ALIGNED, ALIGNING = "aligned", "aligning"
"""Keys of a client's memory: its rows in the common order, int64 (common rows,); its key and list until then."""

IDLE = "idle"
"""The setting of an order to a client that is aligned already, which only replies."""


@runtime_checkable
class IdHolder(Protocol):
    """What an alignment needs of a worker: the ids of its file's rows, see ``data.ids.id_list``, and its site's key."""

    @property
    def ids(self) -> Sequence[str]:
        """The normalised ids in the file's order."""
        ...

    @property
    def id_key(self) -> bytes:
        """The key that all parties share, see ``data.ids.read_key``; empty where the alignment needs none."""
        ...


@dataclass(frozen=True)
class Held:
    """An ``IdHolder`` as a value: that of the active party."""

    ids: Sequence[str]
    id_key: bytes = b""


class AlignmentState(TypedDict):
    """What ``wrapper.with_alignment`` adds to a state, under ``alignment``."""

    rows: Tensor
    """The active party's rows that all parties hold, in the common order, int64 (common rows,); empty before."""
    holds: dict[str, Tensor]
    """Which of the common rows each aligned client holds, bool (common rows,), by client; all, unless it came late."""
    refused: dict[str, str]
    """Why a late client is not aligned, by client."""
    pending: dict[str, Any]
    """The active party's key and lists within a round; empty at its end, so that no checkpoint holds them."""


def alignment_exchanges(kind: str, own: IdHolder | None) -> tuple[Exchange, Exchange, Exchange]:
    """The exchanges of an alignment, for a state with ``alignment``; arguments as of ``wrapper.with_alignment``."""
    blinding = BLINDINGS[kind]
    return _beside(_keys(blinding, own)), _beside(_ids(blinding, own)), _beside(_places())


def _beside(exchange: Exchange) -> Exchange:
    """The exchange, in which clients of the cohort that are aligned already only reply.

    Without them a late party that fails would leave the exchange without any reply, and the round would be lost.
    """

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        asked, known = exchange.ask(state, turn), state["alignment"]["holds"]
        idle = {own.id: Order({}, {IDLE: True}) for own in turn.cohort if str(own.id) in known}
        return dict(sorted({**idle, **asked}.items())) if asked else {}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return (Reply(client.id, {}, 1.0), memory) if order.settings.get(IDLE) else exchange.work(client, order, memory)

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        known = state["alignment"]["holds"]
        return exchange.merge(state, (reply for reply in replies if str(reply.client) not in known))

    return exchange._replace(
        ask=ask,
        work=work,
        merge=merge,
        expects=_unless_idle(exchange.expects),
        metrics=_unless_idle(exchange.metrics),
        ranges=_unless_idle(exchange.ranges),
    )


def _unless_idle(inner: Callable[[Order], Any] | None) -> Callable[[Order], Any] | None:
    return inner and (lambda order: {} if order.settings.get(IDLE) else inner(order))


def _keys(blinding: Blinding, own: IdHolder | None) -> Exchange:
    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        known = state["alignment"]["holds"]
        return {profile.id: Order({}) for profile in turn.cohort if str(profile.id) not in known}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        holder = _holder(client)
        kept = {**memory, ALIGNING: {"key": as_tensor(blinding.key(holder.id_key))}}
        return Reply(client.id, {}, 1.0, {"ids": float(len(holder.ids))}), kept

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        sizes = {str(reply.client): int(reply.metrics["ids"]) for reply in replies if "ids" in reply.metrics}
        return _with(state, pending={"sizes": sizes, **_blinded(blinding, own, state)} if sizes else {})

    def metrics(order: Order) -> Mapping[str, Range]:
        return {"ids": Range(1, MAX_IDS, whole=True)}

    return Exchange("align-keys", ask, work, merge, lambda order: {}, metrics=metrics)


def _blinded(blinding: Blinding, own: IdHolder | None, state: Tree) -> dict[str, Any]:
    """The active party's new key, its sorted blinded ids, their rows, and the number of each among these."""
    found, active = state["alignment"], _holder(own)
    candidates = found["rows"] if found["holds"] else torch.arange(len(active.ids))
    key = blinding.key(active.id_key)
    ordered, order = sorted_rows(blinding.blind(key, [active.ids[row] for row in candidates.tolist()]))
    return {"key": as_tensor(key), "blinded": ordered, "order": order}


def _ids(blinding: Blinding, own: IdHolder | None) -> Exchange:
    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        pending = state["alignment"]["pending"]
        if not pending:
            return {}
        _require_all(state, [profile.id for profile in turn.cohort], pending["sizes"], {})
        sent = {"others": pending["blinded"]} if blinding.again else {}
        return {int(client): Order(sent, {"ids": size}) for client, size in pending["sizes"].items()}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        holder, started = _holder(client), _started(memory)
        if order.settings.get("ids") != len(holder.ids):
            raise WireError("the server asks for another number of ids than this party told")
        key = bytes(started["key"].tolist())
        ordered, own_rows = sorted_rows(blinding.blind(key, holder.ids))
        up = {"own": ordered}
        if blinding.again:
            others = order.params.get("others")
            up["again"] = as_rows(blinding.again(key, received_bytes(others, blinding.width, MAX_IDS)))
        return Reply(client.id, up, 1.0), {**memory, ALIGNING: {**started, "rows": own_rows}}

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        pending = state["alignment"]["pending"]
        matches, refused = dict[str, Tensor](), dict[str, str]()
        for reply in replies:
            try:
                matches[str(reply.client)] = _matches(blinding, pending, reply.params)
            except WireError as error:
                refused[str(reply.client)] = str(error)
        _require_all(state, pending["sizes"], matches, refused)
        return _found(state, _holder(own).ids, matches, refused)

    def expects(order: Order) -> Params:
        up = {"own": torch.zeros(order.settings["ids"], blinding.width, dtype=torch.uint8)}
        return up | ({"again": torch.zeros_like(order.params["others"])} if blinding.again else {})

    def ranges(order: Order) -> Mapping[str, Range]:
        return dict.fromkeys(expects(order), Range(0, 255, whole=True))

    return Exchange("align-ids", ask, work, merge, expects, metrics=lambda order: {}, ranges=ranges)


def _places() -> Exchange:
    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        places = state["alignment"]["pending"].get("places", {})
        return {int(client): Order({"places": own}) for client, own in places.items()}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        rows: Tensor = _started(memory).get("rows", torch.zeros(0, dtype=torch.int64))  # empty if it was never asked
        places = received_places(order.params.get("places"), len(rows))
        kept = {key: value for key, value in memory.items() if key != ALIGNING}
        aligned = torch.where(places >= 0, rows[places.clamp(min=0)], -1)
        return Reply(client.id, {}, 1.0), {**kept, ALIGNED: aligned}

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        places = state["alignment"]["pending"]["places"]
        told = {str(reply.client): places[str(reply.client)] >= 0 for reply in replies}
        _require_all(state, places, told, {})
        return _with(state, holds={**state["alignment"]["holds"], **told}, pending={})

    return Exchange("align-places", ask, work, merge, lambda order: {}, metrics=lambda order: {})


def _matches(blinding: Blinding, pending: Mapping[str, Any], received: Params) -> Tensor:
    """Where each candidate stands in a passive party's list, (candidates,); -1 where it does not."""
    theirs = received_bytes(received.get("own"), blinding.width, MAX_IDS)
    if any(one >= other for one, other in pairwise(theirs)):
        raise WireError("its blinded ids are not sorted, or not all unlike")
    ours = as_bytes(pending["blinded"])
    if blinding.again:
        answered = received_bytes(received.get("again"), blinding.width, MAX_IDS)
        if len(answered) != len(ours):
            raise WireError(f"it has answered {len(answered)} of {len(ours)} blinded ids")
        ours, theirs = answered, blinding.again(bytes(pending["key"].tolist()), theirs)
    place = {blinded: number for number, blinded in enumerate(theirs)}
    found = torch.tensor([place.get(blinded, -1) for blinded in ours])
    if repeats(found):
        raise WireError("it has answered two of the blinded ids that it was sent with the same")
    return torch.full_like(found, -1).scatter(0, pending["order"], found)


def _found(state: Tree, ids: Sequence[str], matches: Mapping[str, Tensor], refused: Mapping[str, str]) -> Tree:
    """The state that knows the common rows, and where they stand in each party's list."""
    found: AlignmentState = state["alignment"]
    rows, places = found["rows"], dict(matches)
    if not found["holds"]:
        common = torch.stack([own >= 0 for own in matches.values()]).all(0).nonzero().squeeze(1).tolist()
        if not common:
            shared = ", ".join(f"client {client} {int((own >= 0).sum())}" for client, own in matches.items())
            raise RoundError(
                f"no id is held by all parties (of the active party's {len(ids)} ids, {shared}); check that "
                "partition.id names the same thing in every file, written in the same way, and that all have one key"
            )
        rows = common_order(common, ids)
        places = {client: own[rows] for client, own in matches.items()}
    elif none := [client for client, own in matches.items() if not (own >= 0).any()]:
        places = {client: own for client, own in matches.items() if client not in none}
        refused = {**refused, **dict.fromkeys(none, "holds none of the common rows")}
    late = {client: reason for client, reason in found["refused"].items() if client not in places}
    return _with(state, rows=rows, refused={**late, **refused}, pending={"places": places} if places else {})


def _require_all(state: Tree, asked: Iterable[Any], got: Iterable[str], refused: Mapping[str, str]) -> None:
    """Raise RoundError if the first alignment lacks a party: what all of them hold is then unknown."""
    there = set(got)
    lacking = [str(client) for client in asked if str(client) not in there]
    if lacking and not state["alignment"]["holds"]:
        causes = "; ".join(f"client {client}: {refused.get(client, 'did not answer')}" for client in lacking)
        raise RoundError(f"the rows cannot be aligned without all parties of the first round ({causes})")


def _with(state: Tree, **changes: Any) -> Tree:
    return {**state, "alignment": {**state["alignment"], **changes}}


def _started(memory: Memory) -> dict[str, Any]:
    started: dict[str, Any] | None = memory.get(ALIGNING)
    if started is None:
        raise TrainingError("this party has no key for the alignment, or has lost its memory; start the run again")
    return started


def _holder(party: object) -> IdHolder:
    if not isinstance(party, IdHolder):
        raise TrainingError("this party has no ids to align its rows by; name their column with partition.id")
    return party
