"""Robust aggregation: median, trimmed mean and clipped mean limit the influence of single clients.

Each replaces the layer-wise mean: every tensor is combined over the clients that sent it; a tensor that nobody sent is
the same object as in ``base``; the result has the dtype, shape and device of ``base``. The median and the trimmed mean
need all values of a tensor at once, so that all replies are held in memory; the clipped mean holds one. The median and
the trimmed mean are unweighted, as weights are the clients' own untrusted claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from fedquilt.aggregate.mean import RunningMean, check_reply, layerwise_mean
from fedquilt.aggregate.settings import RuleSettings, TensorRule
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.federation import Aggregate
from fedquilt.core.params import narrow, scale, select, squared_norm, wide, without
from fedquilt.core.types import Params, Reply

RULES = get_args(TensorRule)

_AT_A_TIME = 1 << 21
"""Numbers, of all senders together, that are sorted at a time."""


def aggregate_rule(settings: RuleSettings) -> Aggregate:
    """The aggregator of a rule for single tensors, ``aggregate(base, replies, weighting)``; of other rules the mean."""
    if settings.rule == "median":
        return coordinate_median
    if settings.rule == "trimmed-mean":
        return partial(trimmed_mean, share=settings.trim_share)
    if settings.rule == "clipped-mean":
        return partial(clipped_mean, bound=settings.clip_norm)
    return layerwise_mean


def coordinate_median(base: Mapping[str, Tensor], replies: Iterable[Reply], weighting: str = "uniform") -> Params:
    """The coordinate-wise median over the clients that sent a tensor; of an even number, the mean of the middle two.

    Fewer than half of the senders of a tensor cannot move a coordinate out of the range of the others, whatever they
    send. ``weighting`` has no effect.

    Raises
    ------
    RoundError
        as ``layerwise_mean``.

    Paper: robust, median
    """

    def median(values: Tensor, base: Tensor) -> Tensor:
        senders = values.shape[1]
        low, high = values[:, (senders - 1) // 2], values[:, senders // 2]
        return torch.where(low == high, low, low / 2 + high / 2)  # as low + high could overflow

    return _coordinatewise(base, replies, median)


def trimmed_mean(
    base: Mapping[str, Tensor],
    replies: Iterable[Reply],
    weighting: str = "uniform",
    *,
    share: float = RuleSettings.trim_share,
) -> Params:
    """The coordinate-wise mean over a tensor's k senders without the ``floor(share k)`` smallest and largest values.

    With fewer than ``1 / share`` senders nothing is trimmed, and this is the plain mean. ``weighting`` has no effect.

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
        senders = values.shape[1]
        cut = math.floor(share * senders + 1e-9)  # 0.29 * 100 is a little less than 29 in binary
        kept = values[:, cut : senders - cut] - base.unsqueeze(1)
        return base + kept.mean(1)  # exactly the base where all sent the base

    return _coordinatewise(base, replies, trimmed)


def clipped_mean(
    base: Mapping[str, Tensor],
    replies: Iterable[Reply],
    weighting: str = "examples",
    *,
    bound: float = RuleSettings.clip_norm,
) -> Params:
    """The layer-wise mean of updates whose norms are clipped to ``bound``.

    Raises
    ------
    ConfigError
        if ``bound`` is not above 0, or ``weighting`` is unknown.
    RoundError
        as ``layerwise_mean``.
    """
    if not bound > 0:
        raise ConfigError(f"aggregation.clip_norm = {bound}: must be above 0")
    mean = RunningMean(base, weighting)
    for reply in replies:
        norm = _length(base, reply)
        mean.add(reply, bound / norm if norm > bound else 1.0)
        del reply  # or it would be held while the next one is read
    return mean.result()


def apart(aggregate: Aggregate, names: Collection[str]) -> Aggregate:
    """The aggregator for all tensors but ``names``, which are combined by the coordinate-wise median.

    For running statistics next to a rule that bounds the norm of an update: their scale differs from that of weights,
    and a clipped change of a variance is not meaningful.
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
    """A client's update ``u = theta - base`` times ``min(1, bound / ||u||)``, in float64.

    The norm is taken over all tensors that the client sent.

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


def _length(base: Mapping[str, Tensor], reply: Reply) -> float:
    """The norm of the client's update over all tensors that it sent, of which one is held at a time."""
    check_reply(base, reply)
    steps = (
        wide(sent.detach().to(base[name].device)) - wide(base[name].detach()) for name, sent in reply.params.items()
    )
    return math.sqrt(math.fsum(float(step.square_().sum()) for step in steps))


def _coordinatewise(
    base: Mapping[str, Tensor], replies: Iterable[Reply], middle: Callable[[Tensor, Tensor], Tensor]
) -> Params:
    """Replace every tensor that was sent by ``middle(values, base)``, with the sorted values (coordinates, senders)."""
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
        result[name] = narrow(_middles(sent.pop(name), old, middle), tensor)
    return result


def _middles(sent: Sequence[Tensor], base: Tensor, middle: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``middle`` of one tensor, some coordinates at a time, so that little is held besides what was sent."""
    flat, start = [tensor.reshape(-1) for tensor in sent], base.reshape(-1)
    found = torch.empty_like(start)
    step = max(1, _AT_A_TIME // len(flat))
    for first in range(0, len(start), step):
        part = slice(first, first + step)
        # a coordinate's values lie side by side, which numpy sorts an order of magnitude faster than torch does
        values = torch.stack([one[part] for one in flat]).t().contiguous()
        exact = values.cpu() if values.dtype in (torch.float32, torch.float64) else wide(values).cpu()
        exact.numpy().sort(axis=1)
        found[part] = middle(wide(exact.to(start.device)), start[part])
    return found.reshape(base.shape)
