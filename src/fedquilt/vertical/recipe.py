"""A vertical method as a value: what parties learn alone, and what the active one makes of all embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from fedquilt.vertical.joint import Joint
from fedquilt.vertical.party import OwnLoss


@dataclass(frozen=True)
class Recipe:
    """A vertical method.

    Attributes
    ----------
    joint
        What the active party makes of all embeddings.
    own
        How parties learn from rows of their own; None if they do not.
    minibatches
        Minibatches of aligned rows in a round.
    aligned_share, local_share
        The weight of the aligned rows in the prior of all parties, and of a party's own prior in that which guides it.
    dropout
        How often a passive party is hidden from the joint model in a row.
    prototypes
        Whether parties send class prototypes, priors and counts, and are sent the gradients of prototypes.
    alone
        Whether the active party learns and predicts by itself: passive parties send nothing.
    """

    joint: Joint
    own: OwnLoss | None = None
    minibatches: int = 1
    aligned_share: float = 0.5
    local_share: float = 0.5
    dropout: float = 0.0
    prototypes: bool = True
    alone: bool = False
