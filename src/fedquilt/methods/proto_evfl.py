"""Proto-EVFL: class prototypes, conditional transport of unaligned rows, mixed priors and a gate over parties."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Count, Few, FromRound, Kept, Part, Penalty, Positive, Share, Text, Unless, With
from fedquilt.core.types import Params
from fedquilt.methods.traits import Traits
from fedquilt.vertical.calibration import offset_of
from fedquilt.vertical.fusion import fused, gates
from fedquilt.vertical.joint import Joint, Views, gate_logits, gate_of, head_logits, head_of, party_scores
from fedquilt.vertical.lesson import Lesson, OwnLoss
from fedquilt.vertical.losses import Weights, aligned_loss, kept_rows, unaligned_loss
from fedquilt.vertical.method import vertical_method, vertical_of
from fedquilt.vertical.prediction import known_by_any
from fedquilt.vertical.prototypes import cosines
from fedquilt.vertical.recipe import Recipe
from fedquilt.vertical.selection import Selection
from fedquilt.vertical.semantic import Semantic, attributes_of
from fedquilt.vertical.siamese import corrupted_views_loss, predictor_of
from fedquilt.vertical.stacking import stacked
from fedquilt.vertical.transport import transport

OFFSET = "offset"
"""The name of the offset among the tensors of the joint model, where it is found on aligned rows."""

VIEWS = "views"
"""The name of the predictor of self-supervision among a party's tensors."""
CORRUPTION = 0.3
"""The share of a row's values that a view replaces, the default of vfl-hssl."""

TRAITS = Traits(across=True, merge="own", sends_scores=True, vertical=True)


def proto_evfl(
    federation: Federation,
    *,
    minibatches: Few = 4,
    local: bool = True,
    unaligned: Penalty = 1.0,
    transported: Penalty = 0.1,
    unlabelled: Penalty = 0.0,
    fused_weight: Penalty = 0.5,
    each_party: Penalty = 0.5,
    head: Penalty = 1.0,
    temperature: Positive = 0.1,
    keep: Kept = 1.0,
    keep_after: Annotated[FromRound, Unless("keep", 1.0)] = 0,
    softness: Positive = 1.0,
    balanced: bool = True,
    prior_rate: Part = 0.05,
    local_share: Part = 0.5,
    aligned_share: Part = 0.5,
    gate: bool = True,
    hidden: Count = 32,
    mask: bool = True,
    least: Share = 0.0,
    dropout: Share = 0.1,
    offset: Penalty | Literal["auto"] = 0.0,
    attributes: Text | None = None,
    self_supervised: Annotated[Penalty, With("local", (True,))] = 0.0,
) -> Method:
    """Proto-EVFL: parties learn class prototypes from rows that they alone hold, and predict together.

    Parameters
    ----------
    federation : the vertical federation.
    minibatches : minibatches of aligned rows in a round. Gradients of all but the first are late by as many steps.
    local : whether parties also learn from their unaligned rows.
    unaligned, transported : weights of the cross-entropy and of the conditional transport on unaligned rows.
    unlabelled : weight of both where a party knows no labels of its rows, and the likeliest classes stand in. At 0 it
        does not learn from such rows, which cost accuracy where this was measured.
    fused_weight, each_party, head : weights of the cross-entropies on aligned rows: of the fused scores, of each
        party's own, and of a linear classifier over all embeddings.
    temperature : cosines are divided by it.
    keep : share of the rows of each class that is learned from, the cheapest.
    keep_after : the first round in which rows are left out; all are learned from before.
    softness : temperature of the weights of rows by their cost.
    balanced : whether rows count in inverse proportion to how frequent their class is.
    prior_rate : how fast a party without labels learns the class prior of its rows.
    local_share : share of a party's own prior in the one that guides it.
    aligned_share : share of the aligned rows in the prior of all parties.
    gate : whether the weights of parties are learned; otherwise they are equal.
    hidden : width of the gate's hidden layer, and of the network of attributes.
    mask : whether a party counts only for classes that it has learned.
    least : share of a party's labelled rows that a class needs to count as learned, against a few wrong labels.
    dropout : how often a passive party is hidden from the joint model in a row, so that it can be missing later.
    offset : what is subtracted from the logits of classes of the aligned rows when test rows are predicted; above 0,
        classes that nobody has learned can be predicted. ``auto`` chooses it by leaving out each aligned class in turn.
    attributes : CSV file with a row of numbers for each class, at every party: prototypes are made from these by a
        network, so that a class that nobody has rows of has one too. Left out, they are free vectors.
    self_supervised : weight of the self-supervision of vfl-hssl by views of unaligned rows, which is not in the paper.

    Raises
    ------
    ConfigError
        if the offset is to be chosen without ``mask`` or with ``attributes``, or if these cannot be read.

    Paper: proto-evfl, protocol
    """
    weights = Weights(unaligned, transported, fused_weight, each_party, head, temperature)
    selection = Selection(keep, softness, balanced, keep_after)
    own = _own_loss(selection, weights, unlabelled, prior_rate)
    recipe = Recipe(
        _Fusion(weights, hidden, gate, mask, offset, attributes is not None).model,
        _with_views(own, self_supervised, hidden) if local else None,
        minibatches,
        aligned_share=aligned_share,
        local_share=local_share,
        dropout=dropout,
        least=least,
        semantic=None if attributes is None else _semantic(federation, attributes, hidden),
    )
    return vertical_method("proto-evfl", federation, recipe)


def _semantic(federation: Federation, file: str, hidden: int) -> Semantic:
    """How prototypes are made from the attributes of the federation's classes."""
    classes = vertical_of(federation, "proto-evfl").classes
    return Semantic(attributes_of(file, classes, "method.attributes"), hidden)


@dataclass(frozen=True)
class _Fusion:
    """The joint model: a gate over parties, the fused scores, and a linear classifier that helps to train."""

    weights: Weights
    hidden: int
    gate: bool
    mask: bool
    offset: float | Literal["auto"]
    semantic: bool = False

    def __post_init__(self) -> None:
        if self.offset == "auto" and not self.mask:
            raise ConfigError(
                "method.offset = 'auto': leaves classes out by the mask of what parties have learned, and method.mask "
                "= false; set mask = true, or give the offset as a number"
            )
        if self.offset == "auto" and self.semantic:
            raise ConfigError(
                "method.offset = 'auto': takes a class from what the parties have learned, and method.attributes would "
                "still give it the prototype that was learned; give the offset as a number"
            )

    @property
    def model(self) -> Joint:
        """The functions as a joint model."""
        calibrate = self.calibrate if self.offset == "auto" else None
        return Joint(self.init, self.loss, self.predict, self.gates, calibrate)

    def init(self, parties: int, classes: int, width: int, rng: Rng) -> Params:
        return {**head_of(parties, classes, width, rng), **gate_of(parties, width, self.hidden, rng)}

    def gates(self, tensors: Params, views: Views) -> Tensor:
        logits = gate_logits(tensors, views)
        return gates(logits if self.gate else torch.zeros_like(logits), views.present)

    def knows(self, views: Views) -> Tensor:
        """The mask of classes; without it a party that replied counts for all."""
        return views.knows if self.mask else views.knows.any(1, keepdim=True).expand_as(views.knows)

    def tells(self, views: Views) -> Tensor:
        """The mask for predictions: of a class that nobody has learned, all parties know the attributes."""
        new = ~views.knows.any(0) & views.knows.any(1, keepdim=True)
        return self.knows(views) | new if self.semantic else self.knows(views)

    def loss(self, tensors: Params, views: Views, labels: Tensor) -> Tensor:
        there = views.replied
        scores = party_scores(views)
        return aligned_loss(
            [scores[party] for party in there],
            self.gates(tensors, views)[:, there],
            self.knows(views)[there],
            head_logits(tensors, views),
            labels,
            self.weights,
            unseen=not self.semantic,
        )

    def joint(self, tensors: Params, views: Views) -> Tensor:
        """The fused scores, without an offset."""
        return fused(party_scores(views), self.gates(tensors, views), self.tells(views)) / self.weights.temperature

    def calibrate(self, tensors: Params, views: Views, labels: Tensor) -> Params:
        """The offset that aligned rows say is best."""
        found = offset_of(partial(self.joint, tensors), views, labels, 1 / self.weights.temperature)
        return {OFFSET: torch.tensor(found)}

    def predict(self, tensors: Params, views: Views) -> Tensor:
        joint = self.joint(tensors, views)
        offset = float(tensors.get(OFFSET, 0.0)) if self.offset == "auto" else self.offset
        if offset:
            return stacked(joint, views.seen, offset)
        return joint + known_by_any(self.tells(views) if self.semantic else views.knows)


def _own_loss(selection: Selection, weights: Weights, unlabelled: float, rate: float) -> OwnLoss:
    """How a party learns from its unaligned rows: selected and weighted, and carried to class prototypes."""

    def loss(of: Lesson) -> Tensor:
        share = 1.0 if of.labels is not None else unlabelled
        now = selection.at(of.round)
        return share * unaligned_loss(of.embeddings, of.prototypes, of.prior, of.labels, now, weights, of.known)

    def kept(of: Lesson) -> tuple[Tensor, Tensor]:
        now = selection.at(of.round)
        return kept_rows(of.embeddings, of.prototypes, of.prior, of.labels, now, weights.temperature)

    return OwnLoss(
        loss,
        lambda u, prototypes, prior: _plan(u, prototypes, prior, weights.temperature),
        rate,
        unlabelled=unlabelled > 0,
        kept=kept if selection.keep < 1 else None,
    )


def _with_views(own: OwnLoss, weight: float, hidden: int) -> OwnLoss:
    """The same with self-supervision by views of the rows, which needs no labels; unchanged with weight 0.

    Views teach no classes: a party that knows no labels, and does not learn from its likeliest classes, learns from
    views alone, keeps its even prior and moves no prototype.
    """
    if not weight:
        return own
    select = own.kept

    def taught(of: Lesson) -> bool:
        return own.unlabelled or of.labels is not None

    def loss(of: Lesson) -> Tensor:
        views = weight * corrupted_views_loss(of, VIEWS, CORRUPTION)
        return own.loss(of) + views if taught(of) else views

    def kept(of: Lesson) -> tuple[Tensor, Tensor]:
        none = torch.zeros(0, dtype=torch.long)
        return select(of) if select is not None and taught(of) else (none, none.bool())

    def predictor(classes: int, width: int, rng: Rng) -> Params:
        return predictor_of(VIEWS, width, hidden, rng)

    return own._replace(
        loss=loss,
        plan=own.plan if own.unlabelled else None,
        extra=predictor,
        unlabelled=True,
        kept=None if select is None else kept,
    )


def _plan(embeddings: Tensor, prototypes: Tensor, prior: Tensor, temperature: float) -> Tensor:
    """The forward transport of rows to class prototypes, (n, C)."""
    even = torch.full_like(embeddings[:, 0], 1 / len(embeddings))
    return transport(cosines(embeddings, prototypes), prior.to(embeddings.dtype), even, temperature).forward
