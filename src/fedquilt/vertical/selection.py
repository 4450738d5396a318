"""Which unaligned rows a party learns from, and how much each counts: nothing here has a gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from fedquilt.core.settings import FromRound, Kept, Positive
from fedquilt.vertical.transport import Transport

NONE_SEEN = -1.0
"""Stands for the share that was kept of a class of which a party saw no row."""


@dataclass(frozen=True)
class Selection:
    """How unaligned rows are selected and weighted."""

    keep: Kept = 1.0
    """Share of the rows of each class that is kept, those of the lowest cost; below 1 where labels are noisy."""
    softness: Positive = 1.0
    """Temperature of the weights by cost: the lower, the more a cheap row counts."""
    balanced: bool = True
    """Whether a row counts in inverse proportion to how frequent its class is in the batch."""
    after: FromRound = 0
    """The first round in which rows are left out; all are kept before."""

    def at(self, round: int) -> Self:
        """The selection of a round."""
        return self if round >= self.after else replace(self, keep=1.0)


class Tally:
    """How many rows of each class a party saw in a round, and how many of them its selection kept."""

    def __init__(self, classes: int) -> None:
        self.seen, self.kept = torch.zeros(classes), torch.zeros(classes)

    def add(self, classes: Tensor, kept: Tensor) -> None:
        """Count the rows of a minibatch by their classes, (n,), of which some are ``kept``, (n,) boolean."""
        size = len(self.seen)
        self.seen += torch.bincount(classes.cpu(), minlength=size)
        self.kept += torch.bincount(classes.cpu()[kept.cpu()], minlength=size)

    def shares(self) -> Tensor:
        """The share of the rows of each class that was kept, (C,); ``NONE_SEEN`` for a class without rows."""
        return torch.where(self.seen > 0, self.kept / self.seen.clamp_min(1), torch.full_like(self.seen, NONE_SEEN))


def tags(found: Transport, labels: Tensor | None) -> Tensor:
    """The class that each row stands for, (n,): its label, or the likeliest class."""
    return found.forward.argmax(1) if labels is None else labels


def tag_costs(found: Transport, scores: Tensor, labels: Tensor | None) -> Tensor:
    """What carrying each row costs, (n,): to its label's prototype, or in expectation."""
    if labels is None:
        return found.row_costs.detach()
    return 1 - scores.detach().gather(1, labels.unsqueeze(1)).squeeze(1)


def row_weights(costs: Tensor, classes: Tensor, settings: Selection) -> Tensor:
    """The weight of each row in a batch, (n,), not negative and with sum 1.

    Ranks are within a class: one ranking for all classes would drop the rare ones, whose rows cost more. The cheapest
    row of a class is always kept.

    Parameters
    ----------
    costs, classes
        The cost of each row and its class, see ``tag_costs`` and ``tags``.
    settings
        How rows are selected and weighted.

    Paper: proto-evfl, selection
    """
    same = classes.unsqueeze(0) == classes.unsqueeze(1)  # (n, n)
    members = same.sum(1)
    # equal costs are ranked by position, so that the number of rows that are kept does not depend on ties
    position = torch.arange(len(costs), device=costs.device)
    before = (costs.unsqueeze(0) < costs.unsqueeze(1)) | (
        (costs.unsqueeze(0) == costs.unsqueeze(1)) & (position.unsqueeze(0) < position.unsqueeze(1))
    )
    rank = (same & before).sum(1) / members
    weights = torch.exp(-(costs - costs.min()) / settings.softness) * (rank < settings.keep)
    if settings.balanced:
        weights = weights / members
    return (weights / weights.sum()).detach()
