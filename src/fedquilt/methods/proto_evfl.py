"""Proto-EVFL: class prototypes, conditional transport of unaligned rows, mixed priors and a gate over parties."""

from __future__ import annotations

import torch
from torch import Tensor

from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Count, Few, Kept, Part, Penalty, Positive, Share
from fedquilt.core.types import Params
from fedquilt.methods.traits import Traits
from fedquilt.vertical.active import seen_classes
from fedquilt.vertical.exchanges import Recipe, vertical_method, vertical_of
from fedquilt.vertical.fusion import fused, gates
from fedquilt.vertical.joint import Joint, Views, gate_logits, gate_of, head_logits, head_of
from fedquilt.vertical.losses import Weights, aligned_loss, unaligned_loss
from fedquilt.vertical.party import OwnLoss
from fedquilt.vertical.prediction import known_by_any
from fedquilt.vertical.prototypes import cosines
from fedquilt.vertical.selection import Selection
from fedquilt.vertical.stacking import stacked
from fedquilt.vertical.transport import transport

TRAITS = Traits(across=True, merge="own", sends_scores=True, vertical=True)


def proto_evfl(
    federation: Federation,
    *,
    minibatches: Few = 4,
    local: bool = True,
    unaligned: Penalty = 1.0,
    transported: Penalty = 0.1,
    fused_weight: Penalty = 0.5,
    each_party: Penalty = 0.5,
    head: Penalty = 1.0,
    temperature: Positive = 0.1,
    keep: Kept = 1.0,
    softness: Positive = 1.0,
    balanced: bool = True,
    prior_rate: Part = 0.05,
    local_share: Part = 0.5,
    aligned_share: Part = 0.5,
    gate: bool = True,
    hidden: Count = 32,
    mask: bool = True,
    dropout: Share = 0.1,
    offset: Penalty = 0.0,
) -> Method:
    """Proto-EVFL: parties learn class prototypes from rows that they alone hold, and predict together.

    Parameters
    ----------
    federation : the vertical federation.
    minibatches : minibatches of aligned rows in a round. Gradients of all but the first are late by as many steps.
    local : whether parties also learn from their unaligned rows.
    unaligned, transported : weights of the cross-entropy and of the conditional transport on unaligned rows.
    fused_weight, each_party, head : weights of the cross-entropies on aligned rows: of the fused scores, of each
        party's own, and of a linear classifier over all embeddings.
    temperature : cosines are divided by it.
    keep : share of the rows of each class that is learned from, the cheapest; below 1 where labels are noisy.
    softness : temperature of the weights of rows by their cost.
    balanced : whether rows count in inverse proportion to how frequent their class is.
    prior_rate : how fast a party without labels learns the class prior of its rows.
    local_share : share of a party's own prior in the one that guides it.
    aligned_share : share of the aligned rows in the prior of all parties.
    gate : whether the weights of parties are learned; otherwise they are equal.
    hidden : width of the gate's hidden layer.
    mask : whether a party counts only for classes that it has learned.
    dropout : how often a passive party is hidden from the joint model in a row, so that it can be missing later.
    offset : what is subtracted from the logits of classes of the aligned rows when test rows are predicted; above 0,
        classes that nobody has learned can be predicted.

    Paper: proto-evfl, protocol
    """
    weights = Weights(unaligned, transported, fused_weight, each_party, head, temperature)
    selection = Selection(keep, softness, balanced)
    seen = seen_classes(vertical_of(federation, "proto-evfl"))

    def init(parties: int, classes: int, width: int, rng: Rng) -> Params:
        return {**head_of(parties, classes, width, rng), **gate_of(parties, width, hidden, rng)}

    def gated(tensors: Params, views: Views) -> Tensor:
        logits = gate_logits(tensors, views)
        return gates(logits if gate else torch.zeros_like(logits), views.present)

    def known(views: Views) -> Tensor:
        return views.knows if mask else views.knows.any(1, keepdim=True).expand_as(views.knows)

    def scores_of(views: Views) -> Tensor:
        return torch.stack([cosines(own, held) for own, held in zip(views.embeddings, views.prototypes, strict=True)])

    def loss(tensors: Params, views: Views, labels: Tensor) -> Tensor:
        there = views.knows.any(1).nonzero().flatten().tolist()  # the parties that replied
        scores = scores_of(views)
        return aligned_loss(
            [scores[party] for party in there],
            gated(tensors, views)[:, there],
            known(views)[there],
            head_logits(tensors, views),
            labels,
            weights,
        )

    def predict(tensors: Params, views: Views) -> Tensor:
        joint = fused(scores_of(views), gated(tensors, views), known(views)) / temperature
        joint = stacked(joint, seen.to(joint.device), offset)
        return joint if offset else joint + known_by_any(views.knows)

    own = OwnLoss(
        lambda u, prototypes, prior, labels: unaligned_loss(u, prototypes, prior, labels, selection, weights),
        lambda u, prototypes, prior: _plan(u, prototypes, prior, temperature),
        prior_rate,
    )
    recipe = Recipe(
        Joint(init, loss, predict, gated),
        own if local else None,
        minibatches,
        aligned_share=aligned_share,
        local_share=local_share,
        dropout=dropout,
    )
    return vertical_method("proto-evfl", federation, recipe)


def _plan(embeddings: Tensor, prototypes: Tensor, prior: Tensor, temperature: float) -> Tensor:
    """The forward transport of rows to class prototypes, (n, C)."""
    even = torch.full_like(embeddings[:, 0], 1 / len(embeddings))
    return transport(cosines(embeddings, prototypes), prior.to(embeddings.dtype), even, temperature).forward
