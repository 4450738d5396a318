"""Calibrated stacking: classes that the aligned rows never had compete with those that they had.

A model that has only learned some classes gives these larger scores, so an offset is subtracted from them. It cannot be
found on rows of unseen classes, which are not there; classes that were seen take turns to play the unseen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Trial(NamedTuple):
    """A model that was trained without one of the seen classes, on rows that it did not learn from.

    Attributes
    ----------
    scores : of each row and class, (n, C).
    labels : of each row, (n,).
    seen : whether the model's aligned rows had each class, (C,), boolean.
    """

    scores: Tensor
    labels: Tensor
    seen: Tensor


class Recalls(NamedTuple):
    """The share of rows that are predicted right, of seen classes and of unseen ones; 0 where there are none."""

    seen: float
    unseen: float

    @property
    def harmonic(self) -> float:
        """The harmonic mean of both; 0 if either is 0."""
        return 2 * self.seen * self.unseen / (self.seen + self.unseen) if self.seen + self.unseen else 0.0


def stacked(scores: Tensor, seen: Tensor, offset: float) -> Tensor:
    """Scores (n, C) with ``offset`` subtracted from the seen classes, (C,) boolean.

    Paper: proto-evfl, stacking
    """
    return scores - offset * seen.to(scores.dtype)


def recalls(trial: Trial, offset: float) -> Recalls:
    """The recalls of a trial at this offset."""
    right = stacked(trial.scores, trial.seen, offset).argmax(1) == trial.labels
    own = trial.seen[trial.labels]
    return Recalls(*(float(right[part].float().mean()) if part.any() else 0.0 for part in (own, ~own)))


def best_offset(trials: Sequence[Trial], offsets: Sequence[float]) -> float:
    """The offset with the largest harmonic mean of recalls, on the mean over trials; the smallest of equal ones.

    Parameters
    ----------
    trials
        One for each seen class that was left out.
    offsets
        The offsets to choose from.

    Raises
    ------
    ValueError
        if there are no trials or no offsets.
    """
    if not trials or not offsets:
        raise ValueError(f"{len(trials)} trials and {len(offsets)} offsets; there must be at least one of each")
    sums = {offset: sum(recalls(one, offset).harmonic for one in trials) for offset in sorted(offsets)}
    return max(sums, key=sums.__getitem__)
