"""How a party learns from rows of its own: what one step is given, and what it minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.client.workbench import Batch
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params
from fedquilt.data.table import take


class Facts(NamedTuple):
    """What a party was told of some of its aligned rows.

    Attributes
    ----------
    rows
        The rows, as the party holds them.
    others
        The unit embeddings of the same rows by all other parties, in their order, (n, K - 1, m); zeros where a party
        was missing, and no parties where embeddings are not relayed.
    clusters
        The cluster of each row, (n,), where the method has clusters.
    """

    rows: Batch
    others: Tensor
    clusters: Tensor

    def some(self, chosen: Tensor) -> Facts:
        """The facts of the chosen rows."""
        return Facts(take(self.rows, chosen), self.others[chosen], self.clusters[chosen])

    def of_held(self, missing: Tensor | None, numbers: Sequence[int]) -> Facts | None:
        """The facts of rows that the party holds; None without any.

        ``missing`` says whether it lacks each aligned row, None where it holds all; ``numbers`` are those of the rows.
        """
        if missing is None:
            return self
        there = (~missing[torch.tensor(numbers, dtype=torch.long)]).nonzero().squeeze(1)
        return self.some(there) if len(there) else None


@dataclass
class Lesson:
    """What one step on a party's own rows is given.

    Attributes
    ----------
    rows, labels
        A minibatch of its unaligned rows, and their labels, (n,); None where the party knows none.
    embed
        Gives the unit embeddings of rows, (n, m); gradients flow through them.
    prototypes, prior
        The class prototypes, (C, m), and the class prior, (C,).
    extra
        The method's own tensors, by name; they learn too.
    place
        The party's number among all parties; -1 for the active one, which is the last.
    rng
        The random stream of the step.
    facts
        What the party was told of aligned rows; None in a round without.
    round
        The round.
    known
        Whether the party has rows of each class, (C,), where prototypes are made of attributes: only these classes
        compete with each other then, so that no class is learned to be unlike all rows; otherwise None.
    """

    rows: Batch
    labels: Tensor | None
    embed: Callable[[Batch], Tensor]
    prototypes: Tensor
    prior: Tensor
    extra: Params
    place: int
    rng: Rng
    facts: Facts | None = None
    round: int = 0
    known: Tensor | None = None

    @cached_property
    def embeddings(self) -> Tensor:
        """The unit embeddings of the minibatch, (n, m), computed once."""
        return self.embed(self.rows)

    def aligned(self) -> Facts | None:
        """As many aligned rows as the minibatch has, drawn from those of which the party was told something."""
        if self.facts is None:
            return None
        count = len(self.facts.others)
        drawn = torch.randperm(count, generator=self.rng.child("aligned").torch())
        return self.facts.some(drawn[: len(self.rows["labels"])])


class OwnLoss(NamedTuple):
    """How a party learns from its own unaligned rows.

    Attributes
    ----------
    loss
        ``loss(lesson)``, a scalar.
    plan
        ``plan(embeddings, prototypes, prior)`` gives the probability of each class for each row, (n, C), from which a
        party without labels learns its prior; None to keep the prior even.
    rate
        How fast that prior moves, in [0, 1].
    extra
        ``extra(classes, width, rng)`` makes the tensors that the method adds to those of every party; None for none.
    unlabelled
        Whether a party that knows no labels of its rows learns from them too; otherwise it takes no steps on them.
    kept
        ``kept(lesson)`` gives the class that each row stands for, (n,), and whether it is learned from, (n,); None for
        methods that learn from all rows.
    """

    loss: Callable[[Lesson], Tensor]
    plan: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    rate: float = 0.0
    extra: Callable[[int, int, Rng], Params] | None = None
    unlabelled: bool = True
    kept: Callable[[Lesson], tuple[Tensor, Tensor]] | None = None
