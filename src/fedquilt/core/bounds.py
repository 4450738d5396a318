"""What one reply may move and weigh, compared with the others of its exchange.

A single reply cannot show whether it is too long or too heavy: its peers can. So the replies of an exchange are held
until the last has come, an update that is much longer than the cohort's median is scaled down to a multiple of it, and
a weight that is too large a share of all is lowered. All other replies are the same objects.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import NamedTuple

from torch import Tensor

from fedquilt.core.method import Exchange
from fedquilt.core.params import wide
from fedquilt.core.types import ClientId, Order, Params, Reply

RATIO = 10.0
"""How many times the median of its peers anything that one client sent may count, unless a setting says otherwise."""


@dataclass(frozen=True)
class Bounds:
    """Bounds on one reply among those of its exchange; None is no bound.

    ``max_norm_ratio`` bounds an update's length, for each number that it holds, by so many times its peers' median;
    ``max_weight_share`` a client's share of the weights, wherever enough clients send the same tensor.
    """

    max_norm_ratio: float | None = None
    max_weight_share: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is bounded, so that replies must be held."""
        return self.max_norm_ratio is not None or self.max_weight_share is not None


UNBOUNDED = Bounds()


class Bounded(NamedTuple):
    """The replies as they may be merged, and by client what was made of those that were bounded: its update was scaled
    by ``scale``, its ``weight`` lowered from ``sent_weight``."""

    replies: list[Reply]
    notes: dict[ClientId, dict[str, float]]


class Move(NamedTuple):
    """The norm of an update, and how many numbers it holds."""

    norm: float
    size: int

    @property
    def rms(self) -> float:
        """The root of the mean of squares: clients that train few layers compare with those that train many."""
        return self.norm / math.sqrt(self.size) if self.size else 0.0


def starts(exchange: Exchange, order: Order) -> Params:
    """What the client of this order began from, of all that its reply may hold an update of."""
    began = order.params if exchange.expects is None else exchange.expects(order)
    valued = {} if exchange.ranges is None else exchange.ranges(order)
    return {name: tensor for name, tensor in began.items() if name not in valued}


def moved_far(exchange: Exchange, order: Order, reply: Reply) -> Move:
    """How far a reply is from where its client began, over the tensors of which it holds an update."""
    began, squares, size = starts(exchange, order), 0.0, 0
    for name in _updated(began, reply):
        tensor = reply.params[name].detach()
        step = wide(tensor) - wide(began[name].detach().to(tensor.device))
        squares, size = squares + float(step.square().sum()), size + step.numel()
    return Move(math.sqrt(squares), size)


def bounded(exchange: Exchange, orders: Mapping[ClientId, Order], replies: Sequence[Reply], bounds: Bounds) -> Bounded:
    """The replies within the bounds, and what was made of which.

    An exchange that does not say what it expects sends no updates, so that none is too long. A client without peers has
    nobody to be compared with.
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
    """The sizes, none above ``ratio`` times the median of those that are not 0.

    Of an even number the lower of the middle two: half of the clients cannot raise it as they like.
    """
    there = [size for size in sizes if size > 0]
    return [min(size, ratio * median_low(there)) for size in sizes] if there else list(sizes)


def fair_weight(weights: Collection[float], share: float) -> float:
    """The largest weight so that, with all above it lowered to it, none is more than ``share`` of the sum.

    Infinity if none is as it is; the least of the weights, so that all are equal, where they are too few for any other.
    """
    falling = sorted(weights, reverse=True)
    if share * len(falling) <= 1:
        return falling[-1]
    if falling[0] <= share * math.fsum(falling):
        return math.inf
    for capped in range(1, len(falling)):
        # capped of them at the level x, the others as they are:  x = share (capped x + rest)
        if share * capped >= 1:
            break
        level = share * math.fsum(falling[capped:]) / (1 - share * capped)
        if level >= falling[capped]:
            return level
    return falling[-1]


def _scales(
    exchange: Exchange, orders: Mapping[ClientId, Order], replies: Iterable[Reply], ratio: float | None
) -> dict[ClientId, float]:
    """What each client's update is multiplied with."""
    if ratio is None or exchange.expects is None:
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
    """The largest weight with which no client is more than the share of those who sent a tensor, of any tensor.

    A level that holds for some senders holds for all who are more, and a lower one holds too: the least over all sets
    of senders does for every tensor. Who is alone with a tensor is all of it, whatever it weighs.
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
