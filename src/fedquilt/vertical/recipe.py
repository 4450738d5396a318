"""A vertical method as a recipe: its joint model, how parties learn from rows of their own, and what they exchange."""

from __future__ import annotations

from dataclasses import dataclass

from fedquilt.vertical.joint import Joint
from fedquilt.vertical.lesson import OwnLoss
from fedquilt.vertical.semantic import Semantic


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
    relays
        Whether the active party relays to every party what the others embedded in the last round, see ``relay``.
    shared
        The tensors of the joint model that every party trains on rows of its own, and the active party averages.
    least
        The share of its labelled rows that a class needs for a party to have learned it.
    semantic
        How parties make prototypes from attributes of classes; None if they learn them freely.
    """

    joint: Joint
    own: OwnLoss | None = None
    minibatches: int = 1
    aligned_share: float = 0.5
    local_share: float = 0.5
    dropout: float = 0.0
    prototypes: bool = True
    alone: bool = False
    relays: bool = False
    shared: tuple[str, ...] = ()
    least: float = 0.0
    semantic: Semantic | None = None

    @property
    def selects(self) -> bool:
        """Whether parties leave out rows of their own, and tell which share of each class they keep."""
        return self.own is not None and self.own.kept is not None
