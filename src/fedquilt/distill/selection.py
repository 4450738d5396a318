"""The interface of a filter, which chooses the samples that a teacher passes on to a student, and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

import torch
from annotated_types import Ge, Le
from torch import Tensor

from fedquilt.core.errors import TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Few, Kept, Layers, Part, Penalty, Rate, Strength, Whole, With
from fedquilt.core.types import Tree
from fedquilt.distill.clusters import num_of_share

FilterName = Literal["learnability", "linear-ucb", "all", "random", "confidence", "loss", "verified", "oracle"]

NAMES: tuple[str, ...] = get_args(FilterName)
"""Every filter; ``registry.FILTERS`` has a function for each."""

_NETWORKS = With("name", ("learnability",))
_LEARNS = With("name", ("learnability", "linear-ucb"))
_BLANK = With("prior", ("none",))
_Width = Annotated[int, Ge(1), Le(4096)]
_Samples = Annotated[int, Ge(1), Le(100_000)]


class Candidates(NamedTuple):
    """Samples that a student may learn from one teacher.

    Attributes
    ----------
    contexts
        What the student knows of each sample, (samples, features), see ``context.contexts``.
    teacher
        The teacher's mean log-probability per token of its own path, (samples,).
    student
        The student's mean log-probability per token of the teacher's path, (samples,).
    right
        Whether the teacher's path ends in the right answer, (samples,); None where that is not known.
    gain
        What the student would gain from each sample, (samples,), which only an experiment can know.
    """

    contexts: Tensor
    teacher: Tensor
    student: Tensor
    right: Tensor | None = None
    gain: Tensor | None = None


class Filter(NamedTuple):
    """A filter: functions over a state, which is a tree that its student keeps.

    Attributes
    ----------
    name
        The filter's name in run files.
    init
        ``init(features, rng)`` gives the state before the first choice, for contexts of this many features.
    score
        ``score(state, candidates, rng)`` gives the score of each candidate, (samples,); larger is better.
    choose
        ``choose(state, candidates, rng)`` gives the positions of the chosen candidates, increasing, and the new state,
        which remembers these candidates until ``learn``. Chosen are at least one, and none only where there is no
        candidate, or no right one for a filter that asks for right answers.
    learn
        ``learn(state, positions, labels, version)`` gives the state that has learned the labels, in (0, 1), of these
        candidates of the last choice. ``version`` is the version of the student, a number that grows with its training.
    predicted
        ``predicted(state)`` gives the labels that it predicted of all candidates of the last choice, (samples,); None
        for a filter that predicts none.
    """

    name: str
    init: Callable[[int, Rng], Tree]
    score: Callable[[Tree, Candidates, Rng], Tensor]
    choose: Callable[[Tree, Candidates, Rng], tuple[Tensor, Tree]]
    learn: Callable[[Tree, Tensor, Tensor, int], Tree]
    predicted: Callable[[Tree], Tensor] | None = None


@dataclass(frozen=True)
class FilterSettings:
    """The filter that chooses which samples are taught."""

    name: FilterName = "learnability"
    """``learnability`` predicts each sample's reward by a network and its uncertainty by a second one. Controls:
    ``linear-ucb`` (ridge regression with a confidence bound), ``all``, ``random``, ``confidence`` (largest mean
    log-probability that the teacher gives its own path), ``loss`` (largest loss of the student), ``verified`` (paths
    with a right answer) and ``oracle`` (largest gain, which only an experiment knows)."""
    choice: Literal["budget", "threshold"] = "budget"
    """``budget`` takes the candidates with the largest scores; ``threshold`` all with a score above the threshold."""
    share: Annotated[Kept, With("choice", ("budget",))] = 0.5
    """Share of the candidates that a budget takes, rounded up."""
    threshold: Annotated[Part, With("choice", ("threshold",))] = 0.5
    """Score above which a candidate is taken; labels are in (0, 1)."""
    least: Annotated[Part, With("choice", ("threshold",))] = 0.0
    """Share of the candidates that is taken even if fewer are above the threshold; one is always taken."""
    most: Annotated[Kept, With("choice", ("threshold",))] = 1.0
    """Largest share of the candidates that is taken if more are above the threshold."""
    explore: Annotated[Strength, _LEARNS] = 0.5
    """Weight of the second network's output, or of the confidence bound, in the score."""
    explore_input: Annotated[Literal["hidden", "gradient"], _NETWORKS] = "hidden"
    """What the second network reads: the first one's hidden activations, or the gradient of its output."""
    width: Annotated[_Width, _NETWORKS] = 64
    """Width of the hidden layers of both networks."""
    depth: Annotated[Few, _NETWORKS] = 2
    """Number of hidden layers of both networks."""
    prior: Annotated[Literal["none", "confidence"], _NETWORKS] = "none"
    """What the networks begin from: ``none``, or the teacher's ``confidence``, standardised over the candidates and
    squashed as a label is. The networks then learn only what it leaves of the labels, and before they have learned the
    choice is that of the filter ``confidence``."""
    prior_weight: Annotated[Part, _NETWORKS, With("prior", ("confidence",))] = 0.5
    """Weight of the sample's reward in the labels."""
    warm: Annotated[Few, _NETWORKS, _BLANK] = 1
    """Number of first choices that are made by clusters of contexts instead of the networks."""
    clusters: Annotated[Few, _NETWORKS, _BLANK] = 6
    """Largest number of clusters."""
    epochs: Annotated[Layers, _NETWORKS] = 30
    """Steps of Adam, each on all remembered samples, whenever labels arrive."""
    learning_rate: Annotated[Rate, _NETWORKS] = 1e-3
    """Learning rate of both networks."""
    weight_decay: Annotated[Penalty, _NETWORKS] = 1e-4
    """Weight decay of both networks."""
    loss: Annotated[Literal["squared", "absolute"], _NETWORKS] = "squared"
    """How errors of both networks count."""
    ridge: Annotated[Rate, With("name", ("linear-ucb",))] = 1.0
    """Ridge of the linear regression."""
    remembered: Annotated[_Samples, _LEARNS] = 1024
    """Number of samples, the last ones, that a filter learns from."""
    oldest: Annotated[Whole | None, _LEARNS] = None
    """Number of versions of the student after which a remembered sample is forgotten; none if left out."""


def taken(scores: Tensor, settings: FilterSettings) -> Tensor:
    """Positions, increasing, of the candidates to take by their scores; of equal scores the first ones.

    Raises
    ------
    TrainingError
        if a score is not finite.

    Paper: lada, selection
    """
    if not len(scores):
        return torch.zeros(0, dtype=torch.long)
    if not scores.isfinite().all():
        raise TrainingError("a sample's score is not finite; the student's or the teacher's numbers are not, either")
    count = num_of_share(share_of(scores, settings), len(scores))
    return scores.argsort(descending=True, stable=True)[:count].sort().values.cpu()


def share_of(scores: Tensor, settings: FilterSettings) -> float:
    """The share of the candidates to take."""
    if settings.choice == "budget":
        return settings.share
    above = float((scores > settings.threshold).double().mean())
    return min(max(above, settings.least), settings.most)
