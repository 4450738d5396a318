"""What the active party makes of all parties' embeddings: the joint model, its loss and its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.core.rng import Rng
from fedquilt.core.types import Params
from fedquilt.vertical.prototypes import cosines


class Views(NamedTuple):
    """All parties' views of some rows, K parties with the active one last.

    Attributes
    ----------
    embeddings
        Unit embeddings, (K, n, m); 0 where a party is missing.
    prototypes
        Class prototypes of each party, (K, C, m).
    present
        Whether each party has each row, (n, K), boolean.
    knows
        Whether each party has learned each class, (K, C), boolean; all False for a party that is missing.
    seen
        Whether the aligned rows have each class, (C,), boolean.
    """

    embeddings: Tensor
    prototypes: Tensor
    present: Tensor
    knows: Tensor
    seen: Tensor

    @property
    def replied(self) -> list[int]:
        """The numbers of the parties that are not missing."""
        found: list[int] = self.knows.any(1).nonzero().flatten().tolist()
        return found

    @property
    def joined(self) -> Tensor:
        """The embeddings of all parties side by side, (n, K m), 0 for those that are not present."""
        shown = self.embeddings * self.present.T.unsqueeze(-1).to(self.embeddings.dtype)
        return shown.permute(1, 0, 2).flatten(1)

    def without(self, hidden: Tensor) -> Views:
        """The views without the parties that are ``hidden``, (n, K) boolean."""
        return self._replace(present=self.present & ~hidden)


class Joint(NamedTuple):
    """A joint model: what a method does with the views.

    Attributes
    ----------
    init
        ``init(parties, classes, width, rng)`` makes its tensors.
    loss
        ``loss(tensors, views, labels)``, a scalar.
    scores
        ``scores(tensors, views)`` gives the logits of each row and class, (n, C).
    weights
        ``weights(tensors, views)`` gives the weight of each party for each row, (n, K); None for methods without.
    calibrate
        ``calibrate(tensors, views, labels)`` gives what ``scores`` finds among the tensors besides those that learn,
        from aligned rows; None for methods without.
    """

    init: Callable[[int, int, int, Rng], Params]
    loss: Callable[[Params, Views, Tensor], Tensor]
    scores: Callable[[Params, Views], Tensor]
    weights: Callable[[Params, Views], Tensor] | None = None
    calibrate: Callable[[Params, Views, Tensor], Params] | None = None


def linear(rows: int, columns: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """The weight (rows, columns) and bias (rows,) of a linear layer, uniform as torch draws them."""
    bound, generator = 1 / math.sqrt(columns), rng.torch()
    weight, bias = (
        torch.empty(shape).uniform_(-bound, bound, generator=generator) for shape in ((rows, columns), (rows,))
    )
    return weight, bias


def head_of(parties: int, classes: int, width: int, rng: Rng) -> Params:
    """The tensors of a linear classifier over all embeddings."""
    weight, bias = linear(classes, parties * width, rng.child("head"))
    return {"head.weight": weight, "head.bias": bias}


def gate_of(parties: int, width: int, hidden: int, rng: Rng) -> Params:
    """The tensors of a gate: a perceptron with one hidden layer over all embeddings, with one output for a party."""
    first, last = linear(hidden, parties * width, rng.child("gate", 1)), linear(parties, hidden, rng.child("gate", 2))
    return {"gate.1.weight": first[0], "gate.1.bias": first[1], "gate.2.weight": last[0], "gate.2.bias": last[1]}


def head_logits(tensors: Params, views: Views) -> Tensor:
    """The logits of the linear classifier, (n, C)."""
    return views.joined @ tensors["head.weight"].T + tensors["head.bias"]


def party_scores(views: Views) -> Tensor:
    """The cosines of every party's embeddings with its own class prototypes, (K, n, C)."""
    return torch.stack([cosines(own, held) for own, held in zip(views.embeddings, views.prototypes, strict=True)])


def gate_logits(tensors: Params, views: Views) -> Tensor:
    """What the gate says of each party, (n, K)."""
    inner = torch.relu(views.joined @ tensors["gate.1.weight"].T + tensors["gate.1.bias"])
    return inner @ tensors["gate.2.weight"].T + tensors["gate.2.bias"]


def stacked_parties(parts: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """The parts of all parties in one tensor, (K, ...); zeros for a party that is missing."""
    return torch.stack([torch.zeros_like(like) if part is None else part for part in parts])
