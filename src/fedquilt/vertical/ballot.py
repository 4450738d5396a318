"""A joint model in which classifiers vote: a linear one over all embeddings, and every party's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.core.types import Params
from fedquilt.vertical.fusion import voted
from fedquilt.vertical.joint import Joint, Views, head_logits, head_of, party_scores
from fedquilt.vertical.losses import each_party_loss


def ballot(temperature: float, *, only_active: bool = False) -> Joint:
    """The joint model: the mean of the probabilities of the linear classifier and of each party's own.

    A party's own classifier is by cosines with its class prototypes. All logits are divided by ``temperature``: without
    it the linear classifier of unit embeddings would be unsure of everything, and outvoted. On aligned rows the
    linear classifier and the mean of the parties' own learn with equal weights; with ``only_active``, of the parties'
    own that of the active party alone, as passive parties are not told the labels of these rows.
    """

    def loss(tensors: Params, views: Views, labels: Tensor) -> Tensor:
        learners = [-1] if only_active else views.replied
        own = each_party_loss(party_scores(views)[learners] / temperature, labels)
        return functional.cross_entropy(head_logits(tensors, views) / temperature, labels) + own

    def scores(tensors: Params, views: Views) -> Tensor:
        every = torch.cat([head_logits(tensors, views).unsqueeze(0), party_scores(views)]) / temperature
        head = torch.ones_like(views.present[:, :1])
        return voted(every, torch.cat([head, views.present], 1))

    return Joint(head_of, loss, scores)
