"""Any method in common coordinates: two exchanges that find them, before clients train for the first time.

server   ask each client of the first cohort for the bases of its model's features on the public inputs
client   F  for each site and slot, and for the head, (observations, R)
server   Z  common coordinates of the public inputs, from one basis of each architecture          (consensus)
         send Z to every client once, the first time that it takes part
client   A, B, m  its model's axes, solved for at home and kept; returns the coordinates of held-out public inputs
server   the agreement between architectures, for the record

A client keeps the points Z in its memory, where they are part of its model. Nothing in these messages depends on a
client's own rows, nor has a dimension of its model's width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypedDict

import torch

from fedquilt.aggregate.axes import POINT, agreement, consensus
from fedquilt.core.errors import RoundError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker


class AxesState(TypedDict):
    """What ``with_axes`` adds to a state."""

    points: Params
    """The common coordinates of the public inputs by ``point.<place>``; empty before the first round."""
    seen: dict[str, Params]
    """The coordinates of held-out inputs by ``seen.<place>``, by architecture."""
    knows: list[ClientId]
    """The clients that have the points, in order."""


def with_axes(method: Method, federation: Federation, rank: int) -> Method:
    """The method whose models share ``rank`` coordinates that are found in the first round; see the module.

    Architectures without a client in the first cohort do not take part in the consensus. They are given its points
    later, like every client that joins later, and solve for their axes then.
    """
    owner = {profile.id: profile.architecture for profile in federation.profiles}

    def init(rng: Rng) -> Tree:
        return {**method.init(rng), "axes": AxesState(points={}, seen={}, knows=[])}

    def view(state: Tree, profile: Profile) -> Order:
        order = method.view(state, profile)
        return replace(order, params={**order.params, **state["axes"]["points"]})

    def report(state: Tree) -> Mapping[str, Any]:
        return {**method.report(state), "agreement": agreements(state["axes"]["seen"])}

    finding = (_bases(federation, owner, rank), _points(federation, owner))
    return method._replace(init=init, exchanges=(*finding, *method.exchanges), view=view, report=report)


def agreements(seen: Mapping[str, Params]) -> dict[str, float]:
    """The mean correlation of each place's coordinates over pairs of architectures, by place; empty for fewer than two.

    Architectures that lack a place, such as those of other classes for the head, are left out of it.
    """
    places = dict.fromkeys(name for own in seen.values() for name in own)
    held = {name: [own[name] for own in seen.values() if name in own] for name in places}
    return {name.partition(".")[2]: float(agreement(own).mean()) for name, own in held.items() if len(own) > 1}


def _asked(profiles: Iterable[Profile], params: Params) -> dict[ClientId, Order]:
    return {profile.id: Order(params, {"architecture": profile.architecture}) for profile in profiles}


def _bases(federation: Federation, owner: Mapping[ClientId, str], rank: int) -> Exchange:
    """The exchange that finds the common coordinates; nobody is asked once they are known."""

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        return {} if state["axes"]["points"] else _asked(turn.cohort, {})

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return Reply(client.id, client.bases(), 1.0), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        of: dict[str, Params] = {}
        for reply in replies:
            of.setdefault(owner[reply.client], reply.params)
        names = dict.fromkeys(name for own in of.values() for name in own)
        points = {}
        for name in names:
            held = [of[own][name] for own in sorted(of) if name in of[own]]
            if len({len(one) for one in held}) > 1:
                raise RoundError(
                    f"the bases of '{name}' are of {' and '.join(str(len(one)) for one in held)} observations: these "
                    "models cut an input into different tokens; set axes.rows = 'inputs'"
                )
            points[f"{POINT}.{name.partition('.')[2]}"] = consensus(held, rank).points.float()
        return {**state, "axes": {**state["axes"], "points": points}}

    def expects(order: Order) -> Params:
        return _zeros(federation.public[order.settings["architecture"]].bases)

    def ranges(order: Order) -> Mapping[str, Range]:
        return dict.fromkeys(expects(order), Range(-1.001, 1.001))

    return Exchange("axes-bases", ask, work, merge, expects, ranges=ranges)


def _points(federation: Federation, owner: Mapping[ClientId, str]) -> Exchange:
    """The exchange that gives a client the common coordinates, once."""

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        known = set(state["axes"]["knows"])
        return _asked((profile for profile in turn.cohort if profile.id not in known), state["axes"]["points"])

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        own = {**memory.get("params", {}), **order.params}
        return Reply(client.id, client.seen(order.params), 1.0), {**memory, "params": own}

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        axes, knows, seen = state["axes"], set(state["axes"]["knows"]), dict(state["axes"]["seen"])
        for reply in replies:
            knows.add(reply.client)
            seen.setdefault(owner[reply.client], reply.params)
        return {**state, "axes": {**axes, "knows": sorted(knows), "seen": seen}}

    def expects(order: Order) -> Params:
        return _zeros(federation.public[order.settings["architecture"]].seen)

    def ranges(order: Order) -> Mapping[str, Range]:
        return dict.fromkeys(expects(order), Range(-1e4, 1e4))

    return Exchange("axes-points", ask, work, merge, expects, ranges=ranges)


def _zeros(shapes: Params) -> Params:
    return {name: torch.zeros(shape.shape) for name, shape in shapes.items()}
