"""Baselines of vertical federations: split learning, the active party alone, an ensemble, and all columns in one place.

They use the same parties, messages and optimisers as Proto-EVFL, so that a comparison is one of methods alone.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from fedquilt.core.disclosure import EMBEDDINGS, GRADIENTS
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.settings import Few, Positive, Share
from fedquilt.core.types import Params
from fedquilt.methods.traits import Traits
from fedquilt.vertical.fusion import voted
from fedquilt.vertical.joint import Joint, Views, head_logits, head_of, party_scores
from fedquilt.vertical.lesson import Lesson, OwnLoss
from fedquilt.vertical.losses import each_party_loss
from fedquilt.vertical.method import vertical_method
from fedquilt.vertical.prototypes import cosines
from fedquilt.vertical.recipe import Recipe

TRAITS = Traits(across=True, merge="own", sends_scores=True, vertical=True)
SPLIT = replace(TRAITS, discloses=(EMBEDDINGS, GRADIENTS))
ALONE = replace(TRAITS, discloses=())
CENTRAL = replace(SPLIT, complete=True)


def vfl_split(federation: Federation, *, minibatches: Few = 4, dropout: Share = 0.0) -> Method:
    """Split learning: a linear classifier over all embeddings of aligned rows; unaligned rows are not used.

    Parameters
    ----------
    federation : the vertical federation.
    minibatches : minibatches of aligned rows in a round. Gradients of all but the first are late by as many steps.
    dropout : how often a passive party is hidden from the classifier in a row.

    Paper: split-learning, protocol
    """
    return vertical_method("vfl-split", federation, _split(minibatches, dropout))


def vfl_central(federation: Federation, *, minibatches: Few = 4) -> Method:
    """All columns and labels in one place: split learning on every row that any party has. A bound, no federation.

    Parameters
    ----------
    federation : the vertical federation, in which all rows are aligned.
    minibatches : minibatches in a round.
    """
    return vertical_method("vfl-central", federation, _split(minibatches, 0.0))


def vfl_local(federation: Federation, *, minibatches: Few = 4, temperature: Positive = 0.1) -> Method:
    """The active party alone, with its own columns: its aligned rows, and the unaligned ones whose labels it knows.

    Parameters
    ----------
    federation : the vertical federation.
    minibatches : minibatches of aligned rows in a round.
    temperature : cosines with class prototypes are divided by it.
    """

    def scores(tensors: Params, views: Views) -> Tensor:
        return cosines(views.embeddings[-1], views.prototypes[-1]) / temperature

    def loss(tensors: Params, views: Views, labels: Tensor) -> Tensor:
        return functional.cross_entropy(scores(tensors, views), labels)

    recipe = Recipe(Joint(_no_tensors, loss, scores), _labelled(temperature), minibatches, alone=True)
    return vertical_method("vfl-local", federation, recipe)


def vfl_ensemble(federation: Federation, *, minibatches: Few = 4, temperature: Positive = 0.1) -> Method:
    """An ensemble: every party has a classifier of its own, and the mean of their probabilities predicts.

    It sees the same labels as Proto-EVFL: those of each party's unaligned rows, and of aligned rows by gradients.

    Parameters
    ----------
    federation : the vertical federation.
    minibatches : minibatches of aligned rows in a round.
    temperature : cosines with class prototypes are divided by it.
    """

    def loss(tensors: Params, views: Views, labels: Tensor) -> Tensor:
        return each_party_loss(party_scores(views)[views.replied] / temperature, labels)

    def scores(tensors: Params, views: Views) -> Tensor:
        return voted(party_scores(views) / temperature, views.present)

    recipe = Recipe(Joint(_no_tensors, loss, scores), _labelled(temperature), minibatches)
    return vertical_method("vfl-ensemble", federation, recipe)


def _split(minibatches: int, dropout: float) -> Recipe:
    def loss(tensors: Params, views: Views, labels: Tensor) -> Tensor:
        return functional.cross_entropy(head_logits(tensors, views), labels)

    return Recipe(Joint(head_of, loss, head_logits), None, minibatches, dropout=dropout, prototypes=False)


def _labelled(temperature: float) -> OwnLoss:
    """Cross-entropy of cosines with class prototypes; a party without labels takes no steps."""

    def loss(of: Lesson) -> Tensor:
        assert of.labels is not None, "rows without labels are not learned from"
        return functional.cross_entropy(cosines(of.embeddings, of.prototypes) / temperature, of.labels)

    return OwnLoss(loss, unlabelled=False)


def _no_tensors(parties: int, classes: int, width: int, rng: object) -> Params:
    return {}
