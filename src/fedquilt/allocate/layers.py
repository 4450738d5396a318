"""Sets of layers for clients to train: geometric sets, the odds derived from them, and random draws.

A set of layers is a sorted tuple of block indices, 0 at the input. Every draw has a random stream of its own (the
caller names it by round and client), so that it does not depend on other clients, their order, or other features.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId

Shape = Literal["triangle", "inverted-triangle", "bottleneck", "uniform"]
"""The shapes of ``gd_set``, as the type of a method's setting."""

BASES = ("input", "output")
"""The ends of the model at which a triangle may have its base."""


def gd_set(shape: str, num_layers: int, budget: int, base: str = "input") -> tuple[int, ...]:
    """The layers that a client with ``budget`` trains under a geometrically defined allocation.

    With L layers and budget k:

    * ``triangle``: the k layers nearest its base, ``0 .. k-1``;
    * ``inverted-triangle``: the k layers at the other end, ``L-k .. L-1``;
    * ``bottleneck``: the first ``ceil(k/2)`` and the last ``floor(k/2)``;
    * ``uniform``: evenly spaced, ``floor(i L / k)`` for ``i = 0 .. k-1``.

    The shape is that of the histogram of all groups' sets over depth. The authors' released configurations contain the
    bottleneck and uniform sets, but do not say at which end a triangle has its base. ``base = "output"`` therefore
    flips both triangles; it does not affect the other shapes.

    Raises
    ------
    ConfigError
        if the shape or base is unknown.
    ValueError
        if the budget is not in ``1 .. num_layers``.

    Paper: fed-hello, gd-set
    """
    if shape not in SHAPES:
        raise ConfigError(
            f"method.shape is '{shape}'; it must be one of {', '.join(SHAPES)}{suggestion(shape, [*SHAPES])}"
        )
    if base not in BASES:
        raise ConfigError(f"method.base is '{base}'; it must be one of {', '.join(BASES)}{suggestion(base, BASES)}")
    _check_budget(budget, num_layers)
    if base == "output":
        shape = {"triangle": "inverted-triangle", "inverted-triangle": "triangle"}.get(shape, shape)
    return tuple(SHAPES[shape](num_layers, budget))


def _bottleneck(num_layers: int, budget: int) -> list[int]:
    return [*range((budget + 1) // 2), *range(num_layers - budget // 2, num_layers)]


SHAPES: dict[str, Callable[[int, int], Sequence[int]]] = {
    "triangle": lambda num_layers, budget: range(budget),
    "inverted-triangle": lambda num_layers, budget: range(num_layers - budget, num_layers),
    "bottleneck": _bottleneck,
    "uniform": lambda num_layers, budget: [i * num_layers // budget for i in range(budget)],
}
"""Rules by shape, for triangles with the base at the input; use ``gd_set``, which checks its arguments."""


def counts(
    shape: str,
    num_layers: int,
    budgets: Sequence[int],
    shares: Sequence[int | Fraction] | None = None,
    base: str = "input",
) -> tuple[int | Fraction, ...]:
    """For every layer, the number of groups whose geometric set holds it: ``c_l = sum_g s_g [l in set(budget_g)]``.

    Parameters
    ----------
    shape, base
        As for ``gd_set``.
    num_layers
        The number of layers; the result has one count for each.
    budgets
        The budget of each group.
    shares
        ``s_g``, each group's share of the clients, so that the odds follow the population. If left out, ``s_g`` is 1,
        as in the paper.

    Paper: fed-hello, counts
    """
    weights: Sequence[int | Fraction] = [1] * len(budgets) if shares is None else shares
    sets = [frozenset(gd_set(shape, num_layers, budget, base)) for budget in budgets]
    return tuple(
        sum(weight for weight, chosen in zip(weights, sets, strict=True) if layer in chosen)
        for layer in range(num_layers)
    )


def odds(weights: Sequence[float | Fraction]) -> tuple[float, ...]:
    """The probabilities proportional to ``weights``: ``p_l = w_l / sum(w)``.

    Raises
    ------
    ValueError
        if a weight is negative or not finite, or all are 0.
    """
    total = sum(weights)
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not 0 < total < math.inf:
        raise ValueError(f"weights must be finite, at least 0 and not all 0; got {[float(w) for w in weights]}")
    return tuple(float(weight / total) for weight in weights)


def draw(probabilities: Sequence[float], budget: int, rng: Rng) -> tuple[int, ...]:
    """Draw ``budget`` distinct layers one after another, without replacement, with the odds ``probabilities``.

    Implemented as the ``budget`` largest of ``log p_l + G_l`` with standard Gumbel noise G, which has the same
    distribution. Layers of probability 0 are drawn only after all others, with equal odds. From one stream, the set of
    a smaller budget is a subset of that of a larger one. Inclusion probabilities are not proportional to p; for that,
    see ``madow``.

    Raises
    ------
    ValueError
        if the budget is not in ``1 .. len(probabilities)``, or a probability is negative or not finite.

    Paper: fed-hello, rgd-draw
    """
    _check_budget(budget, len(probabilities))
    noise = rng.numpy().gumbel(size=len(probabilities))
    return tuple(sorted(_by_race(probabilities, noise)[:budget].tolist()))


def _by_race(probabilities: Sequence[float], noise: np.ndarray) -> np.ndarray:
    """Layers in the order in which they are drawn; ``noise`` is ``(..., num_layers)``, one draw in each row."""
    odds = np.asarray(probabilities, dtype=np.float64)
    if not (np.isfinite(odds).all() and (odds >= 0).all()):
        raise ValueError(f"probabilities must be finite and at least 0; got {odds.tolist()}")
    with np.errstate(divide="ignore"):
        keys = np.log(odds) + noise
    # the last key of lexsort is the primary one: layers of probability 0 tie there and are ordered by their noise
    return np.lexsort((-noise, -keys), axis=-1)


def inclusion(weights: Sequence[float | Fraction], budget: int) -> tuple[float, ...]:
    """Inclusion probabilities of the layers for a set of ``budget``, proportional to their weights but at most 1.

    ``pi_l = min(1, c w_l)`` with c such that they sum to ``budget``. If fewer than ``budget`` weights are above 0,
    those layers have probability 1, and the others share the rest evenly.

    Raises
    ------
    ValueError
        if the budget is not in ``1 .. len(weights)``, or the weights are not valid for ``odds``.
    """
    _check_budget(budget, len(weights))
    values = np.array(odds(weights))
    result = np.zeros(len(values))
    free = np.ones(len(values), dtype=bool)
    left = budget
    while left:
        total = values[free].sum()
        result[free] = left * values[free] / total if total > 0 else left / free.sum()
        # the small tolerance prevents rounding from leaving an interval that two sampling points could hit
        certain = free & (result >= 1 - 1e-12)
        if not certain.any():
            break
        result[certain] = 1.0
        free &= ~certain
        result[free] = 0.0
        left = budget - int((~free).sum())
    return tuple(result.tolist())


def madow(weights: Sequence[float | Fraction], budget: int, rng: Rng) -> tuple[int, ...]:
    """Draw ``budget`` distinct layers by systematic sampling, with exactly the probabilities of ``inclusion``.

    The layers, in random order, form consecutive intervals of length pi; points at ``u, u+1, .. u+k-1`` with one
    uniform u select the intervals that they fall into (Madow, 1949). Not in the paper: an alternative to ``draw``,
    whose inclusion probabilities are flatter than its odds.

    Raises
    ------
    ValueError
        as ``inclusion``.
    """
    chances = np.array(inclusion(weights, budget))
    certain = np.flatnonzero(chances == 1.0)
    generator = rng.numpy()
    order = generator.permutation(np.flatnonzero(chances < 1.0))
    num_points = budget - len(certain)
    ends = np.cumsum(chances[order])
    points = generator.uniform() + np.arange(num_points)
    if num_points:
        ends *= num_points / ends[-1]  # makes the last end the exact number of points despite rounding
    picked = order[np.searchsorted(ends, points, side="right")] if num_points else order[:0]
    return tuple(sorted([*certain.tolist(), *picked.tolist()]))


def cover(allocation: Mapping[ClientId, tuple[int, ...]], num_layers: int, rng: Rng) -> dict[ClientId, tuple[int, ...]]:
    """The allocation with minimal changes such that every layer is trained by some client, if possible.

    While one layer has no client and another has several, a client of the layer with the most clients swaps that layer
    for the uncovered one. Each client keeps its number of layers, and ``min(num_layers, sum of budgets)`` layers are
    covered. An allocation that covers all layers is unchanged. Ties are drawn from ``rng``; the order of clients does
    not matter.
    """
    result = {client: allocation[client] for client in sorted(allocation)}
    holders = Counter(layer for layers in result.values() for layer in layers)
    generator = rng.numpy()
    for missing in generator.permutation([layer for layer in range(num_layers) if not holders[layer]]).tolist():
        most = max(holders.values(), default=0)
        if most < 2:
            break
        spare = generator.choice(sorted(layer for layer, number in holders.items() if number == most)).item()
        giver = generator.choice([client for client, layers in result.items() if spare in layers]).item()
        result[giver] = tuple(sorted({*result[giver], missing} - {spare}))
        holders[spare] -= 1
    return result


def _check_budget(budget: int, num_layers: int) -> None:
    if not 1 <= budget <= num_layers:
        raise ValueError(f"budget is {budget}; it must be from 1 to {num_layers}, the number of layers")
