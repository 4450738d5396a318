"""Means that a few clients, however wrong or ill-meant, cannot carry away.

Each takes the place of the layer-wise mean: tensor by tensor, over those that sent it; a tensor that nobody sent is the
same object as in ``base``; the result has the dtype, shape and device of ``base``. A median and a trimmed mean need
all values of a tensor side by side, so all replies are held at once; a clipped mean holds one. A median and a trimmed
mean count every client once: a weight is a client's own claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedquilt.aggregate.mean import check_reply, layerwise_mean
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.params import narrow, scale, select, squared_norm, wide, without
from fedquilt.core.types import Aggregate, Params, Reply

RULES = ("mean", "median", "trimmed-mean", "clipped-mean")


def aggregate_rule(rule: str, *, trim_share: float, clip_norm: float) -> Aggregate:
    """The aggregator of a run file's ``[aggregation] rule``: ``aggregate(base, replies, weighting)``.

    Raises
    ------
    ConfigError
        if there is no such rule.
    """
    if rule == "mean":
        return layerwise_mean
    if rule == "median":
        return coordinate_median
    if rule == "trimmed-mean":
        return partial(trimmed_mean, share=trim_share)
    if rule == "clipped-mean":
        return partial(clipped_mean, bound=clip_norm)
    raise ConfigError(f"aggregation.rule is '{rule}'; it must be one of {', '.join(RULES)}")


def coordinate_median(base: Mapping[str, Tensor], replies: Iterable[Reply], weighting: str = "uniform") -> Params:
    """Every coordinate's median over the clients that sent its tensor; of an even number, the mean of the middle two.

    Fewer than half of the senders of a tensor, whatever they send, cannot move a coordinate out of the range of the
    others. ``weighting`` is taken and not used.

    Raises
    ------
    RoundError
        as ``layerwise_mean``.

    Paper: robust, median
    """

    def median(values: Tensor, base: Tensor) -> Tensor:
        low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
        return torch.where(low == high, low, low / 2 + high / 2)  # as low + high could overflow

    return _coordinatewise(base, replies, median)


def trimmed_mean(
    base: Mapping[str, Tensor], replies: Iterable[Reply], weighting: str = "uniform", *, share: float = 0.1
) -> Params:
    """Every coordinate's mean over the senders of its tensor without the ``floor(share k)`` smallest and largest of k.

    With fewer than ``1 / share`` senders nothing is cut and this is the plain mean. ``weighting`` is taken and not
    used.

    Raises
    ------
    ConfigError
        if ``share`` is not in [0, 0.5).
    RoundError
        as ``layerwise_mean``.

    Paper: robust, trimmed-mean
    """
    if not 0 <= share < 0.5:
        raise ConfigError(f"aggregation.trim_share = {share}: must be at least 0 and below 0.5")

    def trimmed(values: Tensor, base: Tensor) -> Tensor:
        cut = math.floor(share * len(values) + 1e-9)  # 0.29 * 100 is a little less than 29 in binary
        return base + (values[cut : len(values) - cut] - base).mean(0)  # exactly the base where all sent the base

    return _coordinatewise(base, replies, trimmed)


def clipped_mean(
    base: Mapping[str, Tensor], replies: Iterable[Reply], weighting: str = "examples", *, bound: float = 1.0
) -> Params:
    """The layer-wise mean of updates none of which is longer than ``bound``.

    Raises
    ------
    ConfigError
        if ``bound`` is not above 0, or ``weighting`` is unknown.
    RoundError
        as ``layerwise_mean``.
    """
    if not bound > 0:
        raise ConfigError(f"aggregation.clip_norm = {bound}: must be above 0")
    return layerwise_mean(base, (_clipped(base, reply, bound) for reply in replies), weighting)


def apart(aggregate: Aggregate, names: Collection[str]) -> Aggregate:
    """The aggregator, but for the tensors ``names``: of these the coordinate-wise median.

    For running statistics beside a rule that bounds an update's length: theirs is of another kind than that of weights,
    and a part of the way to a variance is none.
    """

    def both(base: Mapping[str, Tensor], replies: Iterable[Reply], weighting: str) -> Params:
        held: list[Reply] = []

        def others() -> Iterator[Reply]:
            for reply in replies:
                held.append(replace(reply, params=select(reply.params, names)))
                yield replace(reply, params=without(reply.params, names))

        rest = aggregate(without(base, names), others(), weighting)
        made = {**rest, **coordinate_median(select(base, names), held)}
        return {name: made[name] for name in base}

    return both if names else aggregate


def clipped_step(base: Mapping[str, Tensor], reply: Reply, bound: float) -> Params:
    """A client's update ``u = theta - base``, over all tensors it sent, times ``min(1, bound / ||u||)``; float64.

    The norm is that of all its tensors together.

    Raises
    ------
    RoundError
        as ``layerwise_mean``.

    Paper: dp-fedavg, clip
    """
    check_reply(base, reply)
    step = {
        name: wide(tensor.detach().to(base[name].device)) - wide(base[name].detach())
        for name, tensor in reply.params.items()
    }
    norm = math.sqrt(squared_norm(step))
    return step if norm <= bound else scale(step, bound / norm)


def _clipped(base: Mapping[str, Tensor], reply: Reply, bound: float) -> Reply:
    step = clipped_step(base, reply, bound)
    moved = {name: wide(base[name].detach()) + change for name, change in step.items()}
    return Reply(reply.client, moved, reply.weight, reply.metrics, reply.round)


def _coordinatewise(
    base: Mapping[str, Tensor], replies: Iterable[Reply], middle: Callable[[Tensor, Tensor], Tensor]
) -> Params:
    """Every tensor of the base replaced by ``middle(what its senders sent, sorted (senders, ...), the base's own)``."""
    sent: dict[str, list[Tensor]] = {}
    num_replies = 0
    for reply in replies:
        num_replies += 1
        check_reply(base, reply)
        for name, tensor in reply.params.items():
            sent.setdefault(name, []).append(tensor.detach().to(base[name].device))
    if not num_replies:
        raise RoundError("no replies to aggregate; at least one client must answer")
    result: Params = {}
    for name, tensor in base.items():
        if name not in sent:
            result[name] = tensor
            continue
        old = wide(tensor.detach())
        found = middle(torch.stack([wide(one) for one in sent.pop(name)]).sort(dim=0).values, old)
        result[name] = narrow(found, tensor)
    return result
