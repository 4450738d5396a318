"""Any method in common coordinates: an exchange that finds them, before clients train for the first time.

server   ask two clients of each architecture in the first cohort for bases of their model's features on public inputs
client   F  for each site and slot, and for the head, (observations, R)
server   Z  common coordinates of the public inputs, from one reply of each architecture          (consensus)
         send Z to every client once, with the first order that it answers
client   A, B, m  its model's axes, solved for at home; two of each architecture also send the coordinates of
         held-out public inputs
server   the agreement between architectures, for the record

Where axes are anchored (``aggregate.anchor``), only clients of the smallest architecture of the first cohort speak, and
what the first of them says of its model becomes the points, as it is.

A client keeps the points Z in its memory, where they are part of its model. Nothing in these messages depends on a
client's own rows, nor has a dimension of its model's width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

import torch
from torch import Tensor

from fedquilt.aggregate.axes import POINT, SEEN, agreement, consensus, is_point
from fedquilt.core.errors import RoundError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import without
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker

SPEAKS = "speaks"
"""The setting of an order whose client speaks for its architecture: what it sends, the others would send as well."""


class AxesState(TypedDict):
    """What ``with_axes`` adds to a state."""

    points: Params
    """The common coordinates of the public inputs by ``point.<place>``; empty before the first round."""
    seen: dict[str, Params]
    """The coordinates of held-out inputs by ``seen.<place>``, by architecture."""
    knows: list[ClientId]
    """The clients that have the points, in order."""


def with_axes(
    method: Method,
    federation: Federation,
    rank: int,
    *,
    turned: Callable[[str], Tensor] | None = None,
    least: float = 0.0,
) -> Method:
    """The method whose models share ``rank`` coordinates that are found in the first round; see the module.

    Architectures without a client in the first cohort do not take part in the consensus. They are given its points
    later, like every client that joins later, and solve for their axes then.

    Parameters
    ----------
    method, federation, rank
        The method to wrap, the federation, and the number of coordinates.
    turned
        The orthogonal matrix (r, r) by which the points of each architecture are rotated, by its name: the control
        without common meaning. If left out, all architectures have the same points.
    least
        The least agreement, see ``poor_places``; with 0 there is none.

    The first round raises RoundError if the agreement is poor at every place; the report names single such places.
    """
    owner = {profile.id: profile.architecture for profile in federation.profiles}

    def points(state: Tree, architecture: str) -> Params:
        """The common coordinates as they are given to this architecture."""
        found: Params = state["axes"]["points"]
        if turned is None:
            return found
        return {name: (point.double() @ turned(architecture)).float() for name, point in found.items()}

    def init(rng: Rng) -> Tree:
        return {**method.init(rng), "axes": AxesState(points={}, seen={}, knows=[])}

    def view(state: Tree, profile: Profile) -> Order:
        order = method.view(state, profile)
        return replace(order, params={**order.params, **points(state, profile.architecture)})

    def report(state: Tree) -> Mapping[str, Any]:
        seen = state["axes"]["seen"]
        poor = poor_places(seen, least)
        return {**method.report(state), "agreement": agreements(seen), **({"poor_agreement": poor} if poor else {})}

    def checked(before: AxesState, after: AxesState) -> AxesState:
        if len(before["seen"]) < 2:
            _refuse_unrelated(after["seen"], least)
        return after

    informing = (_informing(exchange, federation, owner, points, checked) for exchange in method.exchanges)
    exchanges = (_bases(federation, owner, rank), *informing)
    return method._replace(init=init, exchanges=exchanges, view=view, report=report)


def agreements(seen: Mapping[str, Params]) -> dict[str, float]:
    """The mean correlation of each place's coordinates over pairs of architectures, by place; empty for fewer than two.

    Architectures that lack a place, such as those of other classes for the head, are left out of it.
    """
    places = dict.fromkeys(name for own in seen.values() for name in own)
    held = {name: [own[name] for own in seen.values() if name in own] for name in places}
    return {name.partition(".")[2]: float(agreement(own).mean()) for name, own in held.items() if len(own) > 1}


def smallest(federation: Federation, architectures: Iterable[str]) -> str:
    """The smallest of these architectures, as far as the server knows: by the size of its trained tensors.

    These grow with a model's width and depth.
    """

    def size(architecture: str) -> tuple[int, str]:
        return sum(math.prod(shape) for shape in federation.layouts[architecture].shapes.values()), architecture

    return min(architectures, key=size)


def poor_places(seen: Mapping[str, Params], least: float) -> list[str]:
    """The places at which architectures agree no more than unrelated models would.

    Their mean correlation is below ``least``, and below ``3 / sqrt(N)`` for N held-out observations, three standard
    deviations of the correlation of unrelated coordinates.
    """
    rows = {name.partition(".")[2]: len(tensor) for own in seen.values() for name, tensor in own.items()}
    found = agreements(seen) if least else {}
    return [place for place, value in found.items() if value < min(least, 3 / math.sqrt(rows[place]))]


def _refuse_unrelated(seen: Mapping[str, Params], least: float) -> None:
    """Raise RoundError if the agreement is poor at every place."""
    found = agreements(seen)
    if found and len(poor_places(seen, least)) == len(found):
        figures = ", ".join(f"{place} {value:.3f}" for place, value in found.items())
        raise RoundError(
            "the architectures agree on held-out public inputs no more than unrelated models would (mean correlation: "
            f"{figures}; axes.min_agreement = {least:g}), so what they share would mean something else in each; take "
            "public inputs that resemble the clients' data (axes.source), or more of them (axes.inputs), or set "
            "axes.min_agreement = 0 to go on"
        )


def _speakers(cohort: Sequence[Profile]) -> set[ClientId]:
    """The first two clients of each architecture."""
    of: dict[str, list[ClientId]] = {}
    for profile in cohort:
        of.setdefault(profile.architecture, []).append(profile.id)
    return {client for own in of.values() for client in own[:2]}


def _bases(federation: Federation, owner: Mapping[ClientId, str], rank: int) -> Exchange:
    """The exchange that finds the common coordinates; nobody is asked once they are known."""
    anchored = any(public.anchored for public in federation.public.values())

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        if state["axes"]["points"]:
            return {}
        # two clients speak for each architecture, as one may fail; the others only reply, as the quorum counts them
        anchor = smallest(federation, [own.architecture for own in turn.cohort]) if anchored and turn.cohort else ""
        speakers = _speakers([own for own in turn.cohort if not anchored or own.architecture == anchor])
        return {
            own.id: Order({}, {"architecture": own.architecture, SPEAKS: own.id in speakers}) for own in turn.cohort
        }

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return Reply(client.id, client.bases() if order.settings[SPEAKS] else {}, 1.0), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        of: dict[str, Params] = {}  # stays empty if all are away: the next round asks again
        for reply in replies:
            if reply.params:
                of.setdefault(owner[reply.client], reply.params)
        names = dict.fromkeys(name for own in of.values() for name in own)
        points = {}
        for name in names:
            if anchored:  # only one architecture speaks
                points[f"{POINT}.{name.partition('.')[2]}"] = next(iter(of.values()))[name]
                continue
            held = [of[own][name] for own in sorted(of) if name in of[own]]
            if len({len(one) for one in held}) > 1:
                raise RoundError(
                    f"the bases of '{name}' are of {' and '.join(str(len(one)) for one in held)} observations: these "
                    "models cut an input into different tokens; set axes.rows = 'inputs'"
                )
            points[f"{POINT}.{name.partition('.')[2]}"] = consensus(held, rank).points.float()
        return {**state, "axes": {**state["axes"], "points": points}}

    def expects(order: Order) -> Params:
        return _zeros(federation.public[order.settings["architecture"]].bases) if order.settings[SPEAKS] else {}

    def ranges(order: Order) -> Mapping[str, Range]:
        limit = 1e6 if anchored else 1.001
        return dict.fromkeys(expects(order), Range(-limit, limit))

    return Exchange("axes-bases", ask, work, merge, expects, ranges=ranges, public=True)


def _informing(
    exchange: Exchange,
    federation: Federation,
    owner: Mapping[ClientId, str],
    points: Callable[[Tree, str], Params],
    checked: Callable[[AxesState, AxesState], AxesState],
) -> Exchange:
    """The exchange whose orders also give the common coordinates to each client that does not have them yet.

    ``points`` are those of an architecture, and ``checked`` is given what is known before and after each merge.
    """

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        known, seen = set(state["axes"]["knows"]), state["axes"]["seen"]
        new = [profile for profile in turn.cohort if profile.id not in known]
        speakers = _speakers([profile for profile in new if profile.architecture not in seen])
        return {
            client: order
            if client in known
            else Order({**order.params, **points(state, owner[client])}, {**order.settings, SPEAKS: client in speakers})
            for client, order in exchange.ask(state, turn).items()
        }

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        points = _points(order)
        kept = {**memory, "params": {**memory.get("params", {}), **points}} if points else memory
        reply, after = exchange.work(client, _without_points(order), kept)
        return replace(reply, params={**reply.params, **(client.seen(points) if _speaks(order) else {})}), after

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        knows, seen = set(state["axes"]["knows"]), dict(state["axes"]["seen"])

        def noted() -> Iterator[Reply]:
            for reply in replies:
                public = {name: tensor for name, tensor in reply.params.items() if name.startswith(SEEN + ".")}
                if public:
                    seen.setdefault(owner[reply.client], public)
                knows.add(reply.client)
                yield replace(reply, params=without(reply.params, public)) if public else reply

        merged = exchange.merge(state, noted())
        known = AxesState(points=state["axes"]["points"], seen=seen, knows=sorted(knows))
        return {**merged, "axes": checked(state["axes"], known)}

    def of_public(order: Order) -> Params:
        architecture = order.settings.get("architecture", only)
        return _zeros(federation.public[architecture].seen) if _speaks(order) else {}

    def expects(order: Order) -> Params:
        inner = {} if exchange.expects is None else exchange.expects(_without_points(order))
        return {**inner, **of_public(order)}

    def ranges(order: Order) -> Mapping[str, Range]:
        inner = {} if exchange.ranges is None else exchange.ranges(_without_points(order))
        return {**inner, **dict.fromkeys(of_public(order), Range(-1e4, 1e4))}

    only = next(iter(federation.layouts))
    return exchange._replace(
        ask=ask,
        work=work,
        merge=merge,
        expects=None if exchange.expects is None else expects,
        ranges=ranges,
        **_given(exchange),
    )


def _given(exchange: Exchange) -> dict[str, Any]:
    """The fields of an exchange that read an order, for orders that may hold points."""
    fields = {}
    for name in ("metrics", "peers"):
        if (inner := getattr(exchange, name)) is not None:
            fields[name] = lambda order, inner=inner: inner(_without_points(order))
    return fields


def _points(order: Order) -> Params:
    return {name: tensor for name, tensor in order.params.items() if is_point(name)}


def _speaks(order: Order) -> bool:
    return bool(order.settings.get(SPEAKS, False))


def _without_points(order: Order) -> Order:
    points = _points(order)
    settings = {key: value for key, value in order.settings.items() if key != SPEAKS}
    return Order(without(order.params, points), settings) if points else order


def _zeros(shapes: Params) -> Params:
    return {name: torch.zeros(shape.shape) for name, shape in shapes.items()}
