"""The loop of every federated method: ask, send, merge; round after round.

``send`` is the only side effect. A round that fails leaves nothing behind: the state is a value, and the caller keeps
the last one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedquilt.core.bounds import bounded
from fedquilt.core.checks import Check, broken, declared, refusal
from fedquilt.core.defence import UNBOUNDED, Defence
from fedquilt.core.errors import FedquiltError, RoundError, WireError
from fedquilt.core.held import HELD, keeping, with_held, without_held
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import not_finite, num_bytes
from fedquilt.core.profiling import span
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Failure, Memory, Order, Params, Profile, Reply, Tree, Turn
from fedquilt.core.wire import WIRE, lowered, packed, raised, unpacked
from fedquilt.core.worker import Worker

Send = Callable[[Exchange, Mapping[ClientId, Order]], Iterable[Reply | Failure]]


@dataclass
class Traffic:
    """Record of one exchange; everything but its name is by client.

    Attributes
    ----------
    exchange
        Name of the exchange.
    bytes_down, bytes_up
        Bytes of the tensors of the order and of the usable reply, as they travelled.
    settings
        Settings of the order.
    metrics, weights
        Metrics and weight of each usable reply.
    dropped
        Reason why there is no usable reply.
    bounded
        What was changed in an update or a weight above its bound, see ``core.bounds``.
    """

    exchange: str
    bytes_down: dict[ClientId, int] = field(default_factory=dict)
    bytes_up: dict[ClientId, int] = field(default_factory=dict)
    settings: dict[ClientId, Mapping[str, Any]] = field(default_factory=dict)
    metrics: dict[ClientId, Mapping[str, float]] = field(default_factory=dict)
    dropped: dict[ClientId, str] = field(default_factory=dict)
    weights: dict[ClientId, float] = field(default_factory=dict)
    bounded: dict[ClientId, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """One finished round: its number, the state after it, its traffic and the seconds it took."""

    number: int
    state: Tree
    traffic: tuple[Traffic, ...]
    seconds: float


def rounds(
    method: Method,
    cohorts: Callable[[int], Sequence[Profile]],
    send: Send,
    rng: Rng,
    *,
    num_rounds: int,
    state: Tree = None,
    start: int = 0,
    quorum: float = 0.0,
    min_replies: int = 1,
    check: Check | None = None,
    bounds: Defence = UNBOUNDED,
) -> Iterator[Round]:
    """Run ``method`` and yield each finished round, from ``start`` up to ``num_rounds``.

    An exchange that asks nobody (no client of the cohort is eligible) leaves the state unchanged. Metrics that an
    exchange does not declare are removed from its replies.

    Parameters
    ----------
    method, rng
        The method to run, and the random stream of the run.
    cohorts
        ``cohorts(t)`` gives the clients of round ``t``.
    send
        Delivers the orders of an exchange and yields replies and failures in client order.
    num_rounds, start
        Number of rounds, counted from 0, and the first round to run.
    state
        State to continue from; None for the method's initial state.
    quorum, min_replies
        Share, in [0, 1], and number, at least 1, of the asked clients that must send a usable reply.
    check
        Gives the reason to drop a reply, or None; ``refusal`` if left out.
    bounds
        Bounds relative to the other replies. With any, the replies of an exchange are held until the last one has
        arrived; without, ``merge`` reads each one as it arrives.

    Raises
    ------
    RoundError
        if the cohort is empty, if too few usable replies arrive (names the round, the exchange and each client's
        reason), or if a merge produces a number that is not finite.
    """
    if state is None:
        state = method.init(rng.child("init"))
    for number in range(start, num_rounds):
        began = time.perf_counter()
        turn = Turn(number, tuple(cohorts(number)), rng.child("round", number))
        if not turn.cohort:
            raise RoundError(f"round {number + 1}: the cohort is empty; a round needs at least one client")
        traffic, held = [], dict[ClientId, Params]()
        for exchange in method.exchanges:
            with span("exchange", exchange=exchange.name, round=number + 1):
                state, moved = exchanged(exchange, state, turn, send, check, bounds, held)
            _require(moved, number, quorum, min_replies)
            traffic.append(moved)
        yield Round(number, state, tuple(traffic), time.perf_counter() - began)


def exchanged(
    exchange: Exchange,
    state: Tree,
    turn: Turn,
    send: Send,
    check: Check | None,
    bounds: Defence,
    held: dict[ClientId, Params],
) -> tuple[Tree, Traffic]:
    """Run one exchange; returns the state after it, and its record.

    Parameters
    ----------
    exchange, state, turn, send, check, bounds
        As for ``rounds``.
    held
        By client the tensors, as they travel, that it keeps since an earlier exchange of the round.
    """
    moved = Traffic(exchange.name)
    with span("orders"):
        orders = {
            client: replace(order, round=turn.round, rng=turn.rng.child("client", client, exchange.name).sealed())
            for client, order in sorted(exchange.ask(state, turn).items())
        }
    if not orders:
        return state, moved
    whole = orders if exchange.wire is None else lowered(orders, exchange.wire)
    sent = {client: without_held(order, held.get(client, {})) for client, order in whole.items()}
    for client, order in sent.items():
        moved.bytes_down[client] = num_bytes(order.params)
        moved.settings[client] = dict(order.settings)

    def checked(reply: Reply) -> Reply | Failure:
        order = orders[reply.client]
        try:
            reply = reply if exchange.wire is None else unpacked(order, reply, exchange.wire)
        except WireError as error:
            return Failure(reply.client, str(error))
        reply = declared(exchange, order, reply)
        reason = refusal(reply) if check is None else check(exchange, order, reply)
        return reply if reason is None else Failure(reply.client, reason)

    usable = _usable(send(exchange, sent), moved, checked)
    if bounds.compares:
        replies, moved.bounded = bounded(exchange, orders, list(usable), bounds)
        moved.weights |= {reply.client: float(reply.weight) for reply in replies}
        usable = iter(replies)
    first = next(usable, None)
    if first is not None:
        with span("merge"):
            merged = exchange.merge(state, _chain(first, usable))
        for _ in usable:  # if the merge stopped early, the other clients still work and are counted
            pass
        if (odd := broken(merged, state)) is not None:
            where = f"round {turn.round + 1}, exchange '{exchange.name}'"
            raise RoundError(f"{where}: after the merge, {odd} is not finite; the previous state is kept")
        state = merged
    for client in orders.keys() - moved.bytes_up.keys() - moved.dropped.keys():
        moved.dropped[client] = "sent no reply"
    if exchange.keeps:
        held.update({client: whole[client].params for client in moved.bytes_up})
    return state, moved


def _require(moved: Traffic, number: int, quorum: float, min_replies: int) -> None:
    """Raise RoundError if clients were asked and too few of them sent a usable reply."""
    asked, usable = len(moved.bytes_down), len(moved.bytes_up)
    if asked and usable < (wanted := needed(asked, quorum, min_replies)):
        causes = "; ".join(f"client {client}: {reason}" for client, reason in sorted(moved.dropped.items()))
        raise RoundError(
            f"round {number + 1}, exchange '{moved.exchange}': {usable} of {asked} clients sent a usable reply and "
            f"{wanted} are needed ({causes})"
        )


def needed(orders: int, quorum: float, min_replies: int) -> int:
    """The number of usable replies that an exchange with this many orders needs: the larger bound, at least one."""
    return max(1, min_replies, math.ceil(quorum * orders - 1e-9))  # 0.07 * 100 is a little more than 7 in binary


def _usable(
    replies: Iterable[Reply | Failure], moved: Traffic, checked: Callable[[Reply], Reply | Failure]
) -> Iterator[Reply]:
    last = -1
    for reply in replies:
        if reply.client not in moved.bytes_down or reply.client <= last:
            # a defect of the engine, not of a client: a reply would be counted twice or change the order of the sums
            raise ValueError(f"the engine gave a reply of client {reply.client} unasked, twice or out of order")
        last = reply.client
        size = 0
        if isinstance(reply, Reply):
            size = num_bytes(reply.params)  # as it travelled
            reply = checked(reply)
        if isinstance(reply, Failure):
            moved.dropped[reply.client] = reply.reason
        else:
            moved.bytes_up[reply.client] = size
            moved.metrics[reply.client] = dict(reply.metrics)
            moved.weights[reply.client] = float(reply.weight)
            yield reply


def _chain(first: Reply, rest: Iterator[Reply]) -> Iterator[Reply]:
    yield first
    yield from rest


def perform(
    exchange: Exchange, client: Worker, client_id: ClientId, order: Order, memory: Memory
) -> tuple[Reply | Failure, Memory]:
    """Run the client's side of an exchange: its reply and new memory, or a Failure and the old memory.

    ``order`` and the returned reply have the form in which they travel. A client whose work fails, or whose result is
    not finite, keeps its old memory.

    Parameters
    ----------
    exchange, order
        The exchange and the client's order.
    client, client_id
        The client that ``exchange.work`` is called with, see ``core.worker``, and its number.
    memory
        The client's memory before the exchange.
    """
    wire = exchange.wire
    # what the loop keeps there is hidden from the method, to which a memory without its own entries is empty
    hidden = {HELD} if wire is None else {HELD, WIRE}
    own = {key: value for key, value in memory.items() if key not in hidden} if hidden & memory.keys() else memory
    try:
        order = with_held(order, memory)
        taken = order if wire is None else raised(order, wire)
        reply, new_memory = exchange.work(client, taken, own)
    except FedquiltError as error:
        return Failure(client_id, str(error)), memory
    if reply.round != order.round:
        reply = replace(reply, round=order.round)
    reason = refusal(reply)
    broken = not_finite(new_memory.get("params", {}))
    if reason is None and broken is not None:
        reason = f"the client's own tensor '{broken}' is not finite"
    if reason is None and wire is not None:
        owed = memory.get(WIRE, {})
        reply, owing = packed(taken, reply, owed.get(exchange.name, {}), wire)
        reason = refusal(reply)  # a number may be too large for the short dtype
        if owed or owing:
            new_memory = {**new_memory, WIRE: {**owed, exchange.name: owing}}
    if exchange.keeps:
        new_memory = keeping(new_memory, order)
    return (reply, new_memory) if reason is None else (Failure(client_id, reason), memory)
