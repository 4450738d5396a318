"""Controls: filters with the same interface as the learnability filter, to compare it with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.core.errors import TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Tree
from fedquilt.distill.replay import Memory, noted, nothing, predictions, pushed, standard
from fedquilt.distill.selection import Candidates, Filter, FilterSettings, taken


def everything(settings: FilterSettings) -> Filter:
    """All candidates, whatever the budget."""

    def score(state: Tree, candidates: Candidates, rng: Rng) -> Tensor:
        return torch.ones(len(candidates.contexts))

    def choose(state: Tree, candidates: Candidates, rng: Rng) -> tuple[Tensor, Tree]:
        return torch.arange(len(candidates.contexts)), state

    return _without_state("all", score, settings)._replace(choose=choose)


def uniform(settings: FilterSettings) -> Filter:
    """Candidates at random, all equally likely."""

    def score(state: Tree, candidates: Candidates, rng: Rng) -> Tensor:
        return torch.rand(len(candidates.contexts), generator=rng.child("scores").torch())

    return _without_state("random", score, settings)


def confidence(settings: FilterSettings) -> Filter:
    """The candidates whose path the teacher finds likeliest, per token."""
    return _without_state("confidence", lambda state, candidates, rng: ranks(candidates.teacher), settings)


def student_loss(settings: FilterSettings) -> Filter:
    """The candidates whose path the student finds least likely, per token."""
    return _without_state("loss", lambda state, candidates, rng: ranks(-candidates.student), settings)


def oracle(settings: FilterSettings) -> Filter:
    """The candidates that the student would gain most from."""

    def score(state: Tree, candidates: Candidates, rng: Rng) -> Tensor:
        if candidates.gain is None:
            raise TrainingError("the gain of a sample is not known; only experiments with known rewards have an oracle")
        return ranks(candidates.gain)

    return _without_state("oracle", score, settings)


def verified(settings: FilterSettings) -> Filter:
    """All candidates whose path ends in the right answer."""
    return only_right(everything(settings))._replace(name="verified")


def only_right(inner: Filter) -> Filter:
    """The filter without the candidates whose path ends in a wrong answer; it may choose none.

    The inner filter scores and chooses among all candidates, so that what it remembers does not depend on answers.
    """

    def choose(state: Tree, candidates: Candidates, rng: Rng) -> tuple[Tensor, Tree]:
        if candidates.right is None:
            raise TrainingError("whether a path is right is not known; the questions have no answers to compare with")
        positions, state = inner.choose(state, candidates, rng)
        return positions[candidates.right.cpu()[positions]], state

    return inner._replace(choose=choose)


def linear_ucb(settings: FilterSettings) -> Filter:
    """Ridge regression of the label on the context, plus the width of its confidence bound."""

    def init(inputs: int, rng: Rng) -> Memory:
        return nothing(inputs, 0)

    def bound(state: Memory, candidates: Candidates, explore: float = settings.explore) -> Tensor:
        contexts, replay = standard(state, candidates.contexts), state["replay"]
        return upper_bound(contexts, replay["contexts"], replay["labels"], settings.ridge, explore)

    def choose(state: Memory, candidates: Candidates, rng: Rng) -> tuple[Tensor, Memory]:
        count = len(candidates.contexts)
        if not count:
            return torch.zeros(0, dtype=torch.long), state
        memory = noted(state, candidates.contexts, torch.zeros(count, 0), bound(state, candidates, explore=0.0))
        return taken(bound(state, candidates), settings), memory

    def learn(state: Memory, positions: Tensor, labels: Tensor, version: int) -> Memory:
        replay = pushed(state, positions, labels, version, most=settings.remembered, oldest=settings.oldest)
        return Memory(**{**state, "replay": replay})

    def score(state: Memory, candidates: Candidates, rng: Rng) -> Tensor:
        return bound(state, candidates)

    return Filter("linear-ucb", init, score, choose, learn, predictions)


def upper_bound(contexts: Tensor, seen: Tensor, labels: Tensor, ridge: float, explore: float) -> Tensor:
    """``x' theta + explore sqrt(x' A^-1 x)``, with ``A = ridge I + X' X`` and ``theta = A^-1 X' y``, (samples,).

    It is computed from inner products of contexts, so that it needs no matrix of features by features.

    Parameters
    ----------
    contexts
        The contexts x of the candidates, (samples, features), to which a constant feature of 1 is added.
    seen, labels
        The contexts X that were learned from, with the same feature, and their labels y.
    ridge, explore
        The ridge of the regression, and the factor of the bound's width.

    Paper: linear-ucb, bound
    """
    x, past = (functional.pad(rows.double(), (0, 1), value=1.0) for rows in (contexts, seen))
    cross = x @ past.T  # (samples, seen)
    inverse: Tensor = torch.linalg.inv(past @ past.T + ridge * torch.eye(len(past), dtype=torch.float64))
    mean = cross @ (inverse @ labels.double())
    width = (x.square().sum(1) - ((cross @ inverse) * cross).sum(1)) / ridge
    return (mean + explore * width.clamp(min=0).sqrt()).float()


def ranks(values: Tensor) -> Tensor:
    """The values mapped to (0, 1) by their rank, in increasing order, so that a threshold of 0.5 takes the upper half.

    Raises
    ------
    TrainingError
        if a value is not finite.
    """
    if not values.isfinite().all():
        raise TrainingError("a sample's log-probability is not finite")
    order = values.argsort(stable=True, descending=True).flip(0)
    return ((order.argsort() + 0.5) / len(values)).float().cpu()


def _without_state(name: str, score: Callable[[Tree, Candidates, Rng], Tensor], settings: FilterSettings) -> Filter:
    """A filter that learns nothing."""

    def choose(state: Tree, candidates: Candidates, rng: Rng) -> tuple[Tensor, Tree]:
        return taken(score(state, candidates, rng), settings), state

    return Filter(name, lambda inputs, rng: {}, score, choose, lambda state, positions, labels, version: state)
