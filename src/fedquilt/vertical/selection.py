"""Which unaligned rows a party learns from, and how much each counts: nothing here has a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedquilt.core.settings import Kept, Positive
from fedquilt.vertical.transport import Transport


@dataclass(frozen=True)
class Selection:
    """How unaligned rows are selected and weighted."""

    keep: Kept = 1.0
    """Share of the rows of each class that is kept, those of the lowest cost; below 1 where labels are noisy."""
    softness: Positive = 1.0
    """Temperature of the weights by cost: the lower, the more a cheap row counts."""
    balanced: bool = True
    """Whether a row counts in inverse proportion to how frequent its class is in the batch."""


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
