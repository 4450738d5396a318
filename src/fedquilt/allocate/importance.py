"""Importance of layers: clusters of scores, from which the odds of layers are made, and smoothing over rounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from fedquilt.core.errors import RoundError


def three_means(scores: Sequence[float], k: int = 3) -> tuple[int, ...]:
    """For every layer, the rank of its cluster in the optimal k-means clustering: 0 is the lowest, ``k-1`` the highest.

    The sorted scores are cut into the k segments that minimise ``sum over segments, sum over members (score -
    mean)^2``. Dynamic programming finds the exact optimum, without an initialisation. A cluster's rank is the position
    of its segment. Equal scores share a cluster. With fewer than k distinct scores there are fewer clusters, and ranks
    count down from the top: if all scores are equal, all ranks are ``k-1``.

    Raises
    ------
    RoundError
        if a score is not finite.

    Paper: fed-hello, rank-3-means
    """
    numbers = [float(score) for score in scores]
    for layer, number in enumerate(numbers):
        if not math.isfinite(number):
            raise RoundError(f"the importance score of layer {layer} is {number}, so layers cannot be ranked")
    members = Counter(numbers)
    values = sorted(members)
    num_clusters = min(k, len(values))
    starts = _best_starts(values, [members[value] for value in values], num_clusters)
    rank = {value: k - num_clusters + sum(start <= index for start in starts) - 1 for index, value in enumerate(values)}
    return tuple(rank[number] for number in numbers)


def _best_starts(values: Sequence[float], sizes: Sequence[int], num_clusters: int) -> list[int]:
    """First index of each segment of the best cut of the sorted distinct ``values``, which occur ``sizes`` times."""
    num_values = len(values)
    largest = max(map(abs, values), default=0.0) or 1.0
    values = [value / largest for value in values]  # so that no square overflows
    # best[j] = lowest cost of values[:j] in the segments so far, with the starts that attain it
    nothing: list[int] = []
    best = [(0.0, nothing)] + [(math.inf, nothing)] * num_values
    for _ in range(num_clusters):
        longer = [(math.inf, nothing)] * (num_values + 1)
        for start in range(num_values):
            cost, starts = best[start]
            if cost == math.inf:
                continue
            # running mean and squared deviation: sums of squares would cancel for large scores that are close together
            size, mean, spread = 0, 0.0, 0.0
            for stop in range(start, num_values):
                size += sizes[stop]
                step = values[stop] - mean
                mean += step * sizes[stop] / size
                spread += sizes[stop] * step * (values[stop] - mean)
                if cost + spread < longer[stop + 1][0]:
                    longer[stop + 1] = (cost + spread, [*starts, start])
        best = longer
    return best[num_values][1]


def layer_weights(scores: Sequence[float], log: bool = False) -> tuple[int, ...]:
    """The weight of every layer in the odds: 3 in the most important cluster of layers, then 2, then 1.

    With ``log``, ``log(score)`` is clustered, for long-tailed scores; scores are raised to ``1e-12`` of the largest.

    Raises
    ------
    RoundError
        if a score is not finite.
    ValueError
        if ``log`` is set and a score is negative.
    """
    return tuple(rank + 1 for rank in three_means(_logarithms(scores) if log else scores))


def _logarithms(scores: Sequence[float]) -> list[float]:
    numbers = [float(score) for score in scores]
    if any(number < 0 for number in numbers):
        raise ValueError(f"log needs scores of at least 0; got {numbers}")
    floor = max(numbers, default=0.0) * 1e-12
    return [math.log(max(number, floor)) if floor > 0 else number for number in numbers]


def smoothed(old: Sequence[float] | None, new: Sequence[float], beta: float) -> tuple[float, ...]:
    """Scores averaged over rounds: ``beta * old + (1 - beta) * new`` for each layer; ``new`` if there is no ``old``.

    Raises
    ------
    ValueError
        if ``beta`` is not in ``[0, 1)``, or the two have different lengths.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; it must be at least 0 and below 1")
    if old is None:
        return tuple(float(score) for score in new)
    return tuple(beta * float(before) + (1 - beta) * float(now) for before, now in zip(old, new, strict=True))
