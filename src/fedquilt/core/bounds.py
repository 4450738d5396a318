"""Bounds on the update norm and the weight of one reply, relative to the other replies of its exchange.

Whether an update is too large or a weight too high shows only in comparison with the other clients. The replies of an
exchange are therefore held until the last one has arrived. An update whose norm is far above the cohort's median is
scaled down to a multiple of that median, and a weight that is too large a share of the sum is lowered. All other
replies are passed on as the same objects.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median_low
from typing import Literal, NamedTuple

from torch import Tensor

from fedquilt.core.defence import RATIO, Defence
from fedquilt.core.method import Exchange
from fedquilt.core.params import wide
from fedquilt.core.types import ClientId, Order, Params, Reply


class Bounded(NamedTuple):
    """The replies as they may be merged, and by client what was changed in those that were bounded.

    ``notes[client]`` holds ``scale`` if its update was scaled by this factor, and ``sent_weight`` if its weight was
    lowered from this value.
    """

    replies: list[Reply]
    notes: dict[ClientId, dict[str, float]]


class Move(NamedTuple):
    """The norm of an update, and the number of its elements."""

    norm: float
    size: int

    @property
    def rms(self) -> float:
        """The root mean square, comparable between clients that train few layers and clients that train many."""
        return self.norm / math.sqrt(self.size) if self.size else 0.0


def starts(exchange: Exchange, order: Order) -> Params:
    """The start values of all tensors of which a reply to this order may hold an update."""
    began = order.params if exchange.expects is None else exchange.expects(order)
    valued = {} if exchange.ranges is None else exchange.ranges(order)
    return {name: tensor for name, tensor in began.items() if name not in valued}


def moved_far(exchange: Exchange, order: Order, reply: Reply) -> Move:
    """The norm and size of a reply's update, over the tensors of which it holds an update."""
    began, squares, size = starts(exchange, order), 0.0, 0
    for name in _updated(began, reply):
        tensor = reply.params[name].detach()
        step = wide(tensor) - wide(began[name].detach().to(tensor.device))
        squares, size = squares + float(step.square().sum()), size + step.numel()
    return Move(math.sqrt(squares), size)


def bounded(exchange: Exchange, orders: Mapping[ClientId, Order], replies: Sequence[Reply], bounds: Defence) -> Bounded:
    """The replies within the bounds on one reply relative to the others, and a note on each reply that was changed.

    An exchange without ``expects`` has no known start values, so that its updates are not bounded. Neither is the
    update of a client without peers.
    """
    notes: dict[ClientId, dict[str, float]] = {}
    scales = _scales(exchange, orders, replies, bounds.max_norm_ratio)
    most = _most_weight(orders, replies, bounds.max_weight_share)
    made = []
    for reply in replies:
        if (scale := scales.get(reply.client, 1.0)) < 1:
            notes.setdefault(reply.client, {})["scale"] = scale
            reply = _scaled(exchange, orders[reply.client], reply, scale)
        if reply.weight > most:
            notes.setdefault(reply.client, {})["sent_weight"] = float(reply.weight)
            reply = replace(reply, weight=most)
        made.append(reply)
    return Bounded(made, notes)


def limited(sizes: Sequence[float], ratio: float = RATIO) -> list[float]:
    """The sizes, each at most ``ratio`` times the median of those that are not 0.

    For an even number of sizes the median is the lower of the middle two: half of the clients cannot raise it at will.
    """
    there = [size for size in sizes if size > 0]
    return [min(size, ratio * median_low(there)) for size in sizes] if there else list(sizes)


def fair_weight(weights: Collection[float], share: float) -> float:
    """The largest cap on the weights with which no weight is more than ``share`` of their sum.

    Infinity if the weights satisfy this without a cap. The smallest weight, so that all become equal, if there are too
    few weights for any other solution.
    """
    falling = sorted(weights, reverse=True)
    if share * len(falling) <= 1:
        return falling[-1]
    if falling[0] <= share * math.fsum(falling):
        return math.inf
    for capped in range(1, len(falling)):
        # `capped` of them are at the level x, the others unchanged:  x = share (capped x + rest)
        if share * capped >= 1:
            break
        level = share * math.fsum(falling[capped:]) / (1 - share * capped)
        if level >= falling[capped]:
            return level
    return falling[-1]


def _scales(
    exchange: Exchange, orders: Mapping[ClientId, Order], replies: Iterable[Reply], ratio: float | Literal["off"]
) -> dict[ClientId, float]:
    """The factor of each client's update."""
    if ratio == "off" or exchange.expects is None:
        return {}
    apart: dict[str, dict[ClientId, float]] = defaultdict(dict)
    for reply in replies:
        order = orders[reply.client]
        group = "" if exchange.peers is None else exchange.peers(order)
        apart[group][reply.client] = moved_far(exchange, order, reply).rms
    scales = {}
    for moves in apart.values():
        for (client, own), most in zip(moves.items(), limited([*moves.values()], ratio), strict=True):
            scales[client] = most / own if most < own else 1.0
    return scales


def _most_weight(orders: Mapping[ClientId, Order], replies: Sequence[Reply], share: float | None) -> float:
    """The largest weight with which no client exceeds ``share`` among the senders of any tensor.

    A cap that is low enough for one set of senders is low enough for every larger set, and so is every lower cap: the
    minimum over all sets of senders suits every tensor. A tensor with one sender is left out: its share is always 1.
    """
    if share is None:
        return math.inf
    senders: dict[tuple[str, str], list[Reply]] = defaultdict(list)
    for reply in replies:
        of = str(orders[reply.client].settings.get("architecture", ""))
        for name in reply.params:
            senders[of, name].append(reply)
    sets = {tuple(reply.client for reply in own): own for own in senders.values()}
    levels = [fair_weight([reply.weight for reply in own], share) for own in sets.values() if len(own) > 1]
    return min(levels, default=math.inf)


def _scaled(exchange: Exchange, order: Order, reply: Reply, scale: float) -> Reply:
    began, params = starts(exchange, order), dict(reply.params)
    for name in _updated(began, reply):
        tensor = params[name].detach()
        base = wide(began[name].detach().to(tensor.device))
        params[name] = (base + scale * (wide(tensor) - base)).to(tensor.dtype)
    return replace(reply, params=params)


def _updated(began: Mapping[str, Tensor], reply: Reply) -> list[str]:
    """The names of the tensors of which the reply holds an update."""
    return [
        name
        for name, tensor in reply.params.items()
        if name in began
        and tensor.shape == began[name].shape
        and tensor.is_floating_point()
        and began[name].is_floating_point()
        and not began[name].is_meta
    ]
