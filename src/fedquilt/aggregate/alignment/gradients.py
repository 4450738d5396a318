"""Alignment of the groups' pseudo-gradients (CMGA) before they are averaged.

A group is, for example, the clients of one architecture. Its pseudo-gradient is the average change of the shared
tensors per local step of its clients, with the sign of a gradient. Groups with conflicting pseudo-gradients (a negative
inner product) undo each other's work. Three rules reduce such conflicts; ``"mean"`` is the plain weighted mean:

    projection   each group's gradient is projected off each gradient that it conflicts with, one after the other
    reference    each gradient is projected off the consensus (the weighted mean of directions) if it conflicts with it
    soft         each gradient is weighted by its cosine similarity to the consensus

Rules act separately on each ``"module"`` (tensors whose names differ only after the last dot), on each ``"tensor"``, or
once on all tensors (``"global"``). A group takes part where it has tensors. With two groups and projection the result
conflicts with neither; with three or more, conflicts may remain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.aggregate.alignment.pseudo_gradients import GroupGradient
from fedquilt.aggregate.settings import AlignSettings
from fedquilt.core.errors import RoundError
from fedquilt.core.params import moved, not_finite, wide
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params


class Aligned(NamedTuple):
    """The common ``gradient`` by name, and statistics for the record.

    ``groups`` are the groups in order. ``conflicts`` is the number of pairs of groups whose gradients of a part have a
    negative inner product, over all parts. ``cosines`` (groups, groups) are the cosine similarities of the gradients
    over all tensors that both groups have, 0 where a gradient is zero. Both describe the gradients before alignment.
    """

    gradient: Params
    groups: tuple[str, ...]
    conflicts: int
    cosines: Tensor


def aligned(
    gradients: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float], settings: AlignSettings, rng: Rng
) -> Aligned:
    """Combine the groups' gradients, part by part by the rule of the settings.

    Weights are normalised to sum 1 over the groups that have a part. Groups are sorted by name, so that the result does
    not depend on their order; the random orders of the projection depend on ``rng`` and the name of the part. Without
    conflicts, projection and reference give the weighted mean bit-identically. Every rule is positively homogeneous.

    Raises
    ------
    RoundError
        if there is no group, a gradient is not finite, or a weight is not a number above 0.
    """
    groups = tuple(sorted(gradients))
    if not groups:
        raise RoundError("no groups to align; at least one must have a gradient")
    for group in groups:
        if not 0 < weights[group] < math.inf:
            raise RoundError(f"group {group} has weight {weights[group]}; it must be a number above 0")
        if (bad := not_finite(gradients[group])) is not None:
            raise RoundError(f"the gradient of group {group} is not finite in tensor '{bad}'")
    common: Params = {}
    conflicts = 0
    for label, (names, holders) in sorted(_parts(gradients, groups, settings.align_per).items()):
        vectors = torch.stack([_flat(gradients[group], names) for group in holders])  # (groups, numbers)
        shares = torch.tensor([weights[group] for group in holders], dtype=vectors.dtype, device=vectors.device)
        conflicts += num_conflicts(vectors)
        whole = combined(vectors, shares / shares.sum(), settings, rng.child("align", label))
        start = 0
        for name in names:
            shape = gradients[holders[0]][name].shape
            common[name] = whole[start : start + shape.numel()].reshape(shape)
            start += shape.numel()
    return Aligned(common, groups, conflicts, cosines(gradients, groups))


def combined(vectors: Tensor, shares: Tensor, settings: AlignSettings, rng: Rng) -> Tensor:
    """Combine ``vectors`` (groups, n) into one (n,) by the rule of the settings; ``shares`` (groups,) sum to 1."""
    if settings.align_equalise:
        vectors = equalised(vectors)
    if settings.align == "projection":
        vectors = projected(vectors, rng)
    elif settings.align == "reference":
        vectors = towards_reference(vectors, shares)
    elif settings.align == "soft":
        shares = soft_shares(vectors, shares, settings.align_sharpness)
    return (shares[:, None] * vectors).sum(0)


def num_conflicts(vectors: Tensor) -> int:
    """The number of pairs of ``vectors`` (groups, n) with a negative inner product."""
    return int((torch.triu(vectors @ vectors.T, 1) < 0).sum())


def projected(vectors: Tensor, rng: Rng) -> Tensor:
    """Project each of ``vectors`` (groups, n) off those that it conflicts with.

    ``v <- v - <v, g_j> / ||g_j||^2 g_j`` where ``<v, g_j> < 0``, for the other groups j in a random order; g_j are the
    original vectors. No norm grows. A vector without conflicts is bit-identical to before.

    Paper: heterotune, projection
    """
    directions = _directions(vectors)
    rows = []
    for own, vector in enumerate(vectors):
        others = [other for other in range(len(vectors)) if other != own]
        for place in torch.randperm(len(others), generator=rng.child(own).torch()).tolist():
            other = others[place]
            inner = vector @ directions[other]
            if inner < 0:
                vector = vector - inner * directions[other]
        rows.append(vector)
    return torch.stack(rows)


def towards_reference(vectors: Tensor, shares: Tensor) -> Tensor:
    """Project each of ``vectors`` (groups, n) off the consensus u: ``g - <g, u> / ||u||^2 u`` if ``<g, u> < 0``.

    ``u = sum_m w_m g_m / ||g_m||`` is the mean of directions; norms have no influence.

    Paper: heterotune, reference
    """
    consensus = _consensus(vectors, shares)
    inner = (vectors @ consensus)[:, None]
    return torch.where(inner < 0, vectors - inner * consensus, vectors)


def soft_shares(vectors: Tensor, shares: Tensor, sharpness: float) -> Tensor:
    """The groups' weights ``w_m max(0, cos(g_m, u))^kappa``, normalised to sum 1; all 0 if no cosine is positive.

    Paper: heterotune, soft-weights
    """
    consensus = _consensus(vectors, shares)
    weighed = shares * (_directions(vectors) @ consensus).clamp(min=0) ** sharpness
    total = weighed.sum()
    return weighed / total if total > 0 else weighed


def equalised(vectors: Tensor) -> Tensor:
    """Scale ``vectors`` (groups, n) to the median norm of those that are not zero; zero vectors stay.

    Paper: heterotune, equal-lengths
    """
    lengths = vectors.norm(dim=1)
    present = [length for length in lengths.tolist() if length > 0]
    if not present:
        return vectors
    factors = torch.where(lengths > 0, median(present) / torch.where(lengths > 0, lengths, 1.0), 1.0)
    return vectors * factors[:, None]


def cosines(gradients: Mapping[str, Mapping[str, Tensor]], groups: Iterable[str]) -> Tensor:
    """Cosine similarities (groups, groups) of gradients over the tensors that both have; 0 where one is zero."""
    order = tuple(groups)
    table = torch.zeros(len(order), len(order), dtype=torch.float64)
    for row, one in enumerate(order):
        for column, other in enumerate(order):
            names = sorted(gradients[one].keys() & gradients[other].keys())
            if not names:
                continue
            left, right = _flat(gradients[one], names), _flat(gradients[other], names)
            lengths = float(left.norm() * right.norm())
            if lengths > 0:
                table[row, column] = max(-1.0, min(1.0, float(left @ right) / lengths))
    return table


def aligned_step(
    base: Mapping[str, Tensor],
    found: Mapping[str, GroupGradient],
    settings: AlignSettings,
    rng: Rng,
    learning_rate: float = 1.0,
) -> tuple[Params, Aligned]:
    """The shared tensors after a round, ``S - learning_rate tau G``, and the common gradient G with its statistics.

    tau is the groups' mean number of local steps, weighted by examples: with equal steps, learning rate 1 and no
    conflicts the result is the mean of the tensors that clients sent. A tensor that nobody sent is the same object as
    in ``base``; where the step is 0, the result is bit-identical to ``base``.

    Parameters
    ----------
    base : the shared tensors before the round.
    found : the groups' pseudo-gradients.
    settings : how they are aligned.
    rng : the random stream of the projections' orders.
    learning_rate : the server's learning rate.

    Raises
    ------
    RoundError
        if there is no group, or a gradient is not finite.

    Paper: heterotune, shared-step
    """
    weights = {group: one.weight for group, one in found.items()}
    result = aligned({group: one.gradient for group, one in found.items()}, weights, settings, rng)
    total = sum(weights.values())
    steps = sum(found[group].steps * weights[group] for group in result.groups) / total
    rate = learning_rate * steps
    stepped = {
        name: moved(tensor, -(rate * result.gradient[name])) if name in result.gradient else tensor
        for name, tensor in base.items()
    }
    return stepped, result


def _consensus(vectors: Tensor, shares: Tensor) -> Tensor:
    """The normalised mean of directions; 0 where these cancel out up to rounding."""
    mean = shares @ _directions(vectors)
    length = mean.norm()
    return mean / length if length > 1e-9 else torch.zeros_like(mean)


def _directions(vectors: Tensor) -> Tensor:
    """``vectors`` (groups, n), each divided by its norm; zero vectors stay."""
    lengths = vectors.norm(dim=1, keepdim=True)
    return torch.where(lengths > 0, vectors / torch.where(lengths > 0, lengths, 1.0), 0.0)


def _parts(
    gradients: Mapping[str, Mapping[str, Tensor]], groups: tuple[str, ...], per: str
) -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """The tensors of each part and the groups that have them, by a label of the part."""
    found: dict[str, tuple[list[str], tuple[str, ...]]] = {}
    for name in sorted({name for group in groups for name in gradients[group]}):
        holders = tuple(group for group in groups if name in gradients[group])
        label = {"module": name.rpartition(".")[0], "tensor": name, "global": ""}[per]
        # a part of which groups have different tensors is split, so that all tensors of a part have the same groups
        found.setdefault(repr((label, holders)), ([], holders))[0].append(name)
    return found


def _flat(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    return torch.cat([wide(tensors[name].detach()).reshape(-1) for name in names])
