"""Alignment of what groups of clients want (CMGA): their gradients made to agree before they are averaged.

A group is the clients of one architecture. Its pseudo-gradient is what a step of its clients did to the tensors that
all groups share, on the average, with the sign of a gradient. Groups whose pseudo-gradients point in opposing
directions undo each other's work; three rules lessen that, and ``"mean"`` is the plain weighted mean:

    projection   from each group's gradient is taken what goes against another group's, one after the other
    reference    from each is taken what goes against the consensus, the weighted mean of the directions
    soft         each counts the less the further it is off the consensus

Rules act part by part: on each ``"module"`` (tensors whose names differ in the last piece), each ``"tensor"``, or on
all at once (``"global"``). A group takes part where it has tensors; one that is absent changes nothing. With two groups
and projection the result goes against neither; with three or more, two may still be in conflict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.aggregate.alignment.pseudo_gradients import GroupGradient
from fedquilt.core.errors import ConfigError, RoundError, suggestion
from fedquilt.core.params import moved, not_finite, wide
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params

RULES = ("projection", "reference", "soft", "mean")
PARTS = ("module", "tensor", "global")


@dataclass(frozen=True)
class AlignSettings:
    """How gradients are aligned.

    ``rule`` and ``per`` as above. ``equalise``: first every group's gradient is given the median length, so that a
    large model does not overrule a small one. ``sharpness`` is kappa of the soft rule. ``learning_rate`` is the
    server's.
    """

    rule: str = "projection"
    per: str = "module"
    equalise: bool = False
    sharpness: float = 1.0
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        problems = [
            f"align.{key} is {value!r}{suggestion(value, allowed)}; it must be one of {', '.join(allowed)}"
            for key, value, allowed in (("rule", self.rule, RULES), ("per", self.per, PARTS))
            if value not in allowed
        ]
        if not 0 <= self.sharpness < math.inf:
            problems.append(f"align.sharpness is {self.sharpness!r}; it must be a finite number of at least 0")
        if not 0 < self.learning_rate < math.inf:
            problems.append(f"align.learning_rate is {self.learning_rate!r}; it must be a finite number above 0")
        if problems:
            raise ConfigError(problems)


class Aligned(NamedTuple):
    """The common ``gradient`` by name, and what the record should know of the alignment.

    The ``groups`` in order; the number of ``conflicts``: pairs of groups whose gradients of a part have an inner
    product below 0, over all parts; and the ``cosines`` (groups, groups) between the gradients, over all tensors that
    both groups have, 0 where one is zero. Both are of the gradients as they came.
    """

    gradient: Params
    groups: tuple[str, ...]
    conflicts: int
    cosines: Tensor


def aligned(
    gradients: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float], settings: AlignSettings, rng: Rng
) -> Aligned:
    """The common gradient of groups, part by part by the settings' rule, and what the record should know of it.

    Weights are brought to sum 1 among the groups that have a part. Groups are taken in the order of their names, so
    the order in which they come changes no bit; the projection's random orders depend on ``rng`` and the part's name.
    Without conflicts projection and reference give the weighted mean to the bit. Every rule is positively homogeneous.

    Raises
    ------
    RoundError
        if there is no group, a gradient is not finite, or a weight is no number above 0.
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
    for label, (names, holders) in sorted(_parts(gradients, groups, settings.per).items()):
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
    """One vector (n,) of ``vectors`` (groups, n) whose ``shares`` (groups,) sum to 1, by the settings' rule."""
    if settings.equalise:
        vectors = equalised(vectors)
    if settings.rule == "projection":
        vectors = projected(vectors, rng)
    elif settings.rule == "reference":
        vectors = towards_reference(vectors, shares)
    elif settings.rule == "soft":
        shares = soft_shares(vectors, shares, settings.sharpness)
    return (shares[:, None] * vectors).sum(0)


def num_conflicts(vectors: Tensor) -> int:
    """How many pairs of ``vectors`` (groups, n) have an inner product below 0."""
    return int((torch.triu(vectors @ vectors.T, 1) < 0).sum())


def projected(vectors: Tensor, rng: Rng) -> Tensor:
    """``vectors`` (groups, n), each less what goes against another: ``v <- v - <v, g_j> / ||g_j||^2 g_j`` where
    ``<v, g_j> < 0``, for the other groups j in a random order; g_j are the vectors as they were.

    No vector gets longer. A vector in conflict with none stays the same to the bit.

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
    """``vectors`` (groups, n), each less what goes against the consensus: ``g - <g, u> / ||u||^2 u`` if ``<g, u> < 0``.

    ``u = sum_m w_m g_m / ||g_m||`` is the mean of directions, in which no length counts.

    Paper: heterotune, reference
    """
    consensus = _consensus(vectors, shares)
    inner = (vectors @ consensus)[:, None]
    return torch.where(inner < 0, vectors - inner * consensus, vectors)


def soft_shares(vectors: Tensor, shares: Tensor, sharpness: float) -> Tensor:
    """What each group weighs: ``w_m max(0, cos(g_m, u))^kappa``, brought to sum 1; all 0 where none goes with u.

    Paper: heterotune, soft-weights
    """
    consensus = _consensus(vectors, shares)
    weighed = shares * (_directions(vectors) @ consensus).clamp(min=0) ** sharpness
    total = weighed.sum()
    return weighed / total if total > 0 else weighed


def equalised(vectors: Tensor) -> Tensor:
    """``vectors`` (groups, n), each brought to the median length of those that are not zero; zeros stay.

    Paper: heterotune, equal-lengths
    """
    lengths = vectors.norm(dim=1)
    present = [length for length in lengths.tolist() if length > 0]
    if not present:
        return vectors
    factors = torch.where(lengths > 0, median(present) / torch.where(lengths > 0, lengths, 1.0), 1.0)
    return vectors * factors[:, None]


def cosines(gradients: Mapping[str, Mapping[str, Tensor]], groups: Iterable[str]) -> Tensor:
    """The cosines (groups, groups) between gradients, over the tensors that both have; 0 where one is zero there."""
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
    base: Mapping[str, Tensor], found: Mapping[str, GroupGradient], settings: AlignSettings, rng: Rng
) -> tuple[Params, Aligned]:
    """The shared tensors after a round, ``S - learning_rate tau G``, and the alignment G with its record.

    tau is the mean over groups, by examples, of the steps that they took: with equal steps, rate 1 and no conflict the
    result is the mean of what clients sent. A tensor that nobody sent is the same object as in ``base``; where the step
    is 0 every bit stays.

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
    rate = settings.learning_rate * steps
    stepped = {
        name: moved(tensor, -(rate * result.gradient[name])) if name in result.gradient else tensor
        for name, tensor in base.items()
    }
    return stepped, result


def _consensus(vectors: Tensor, shares: Tensor) -> Tensor:
    """The direction of the mean of directions, of length 1; 0 where these cancel but for rounding."""
    mean = shares @ _directions(vectors)
    length = mean.norm()
    return mean / length if length > 1e-9 else torch.zeros_like(mean)


def _directions(vectors: Tensor) -> Tensor:
    """``vectors`` (groups, n), each divided by its length; zeros stay."""
    lengths = vectors.norm(dim=1, keepdim=True)
    return torch.where(lengths > 0, vectors / torch.where(lengths > 0, lengths, 1.0), 0.0)


def _parts(
    gradients: Mapping[str, Mapping[str, Tensor]], groups: tuple[str, ...], per: str
) -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """The tensors of each part and the groups that have them, by a label; groups take part with whole parts only."""
    found: dict[str, tuple[list[str], tuple[str, ...]]] = {}
    for name in sorted({name for group in groups for name in gradients[group]}):
        holders = tuple(group for group in groups if name in gradients[group])
        label = {"module": name.rpartition(".")[0], "tensor": name, "global": ""}[per]
        # where not all groups have the same tensors of a part, it falls into parts whose holders are the same
        found.setdefault(repr((label, holders)), ([], holders))[0].append(name)
    return found


def _flat(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    return torch.cat([wide(tensors[name].detach()).reshape(-1) for name in names])
