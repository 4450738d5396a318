"""A hybrid of self-supervision and split learning, like FedHSSL: local views of own rows, other parties' of aligned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional

from fedquilt.core.disclosure import COUNTS, EMBEDDINGS, GRADIENTS
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Count, Few, Part, Penalty, Positive
from fedquilt.core.types import Params
from fedquilt.methods.traits import Traits
from fedquilt.vertical.ballot import ballot
from fedquilt.vertical.joint import Joint, Views, head_logits, head_of
from fedquilt.vertical.lesson import Lesson, OwnLoss
from fedquilt.vertical.method import vertical_method
from fedquilt.vertical.prototypes import cosines
from fedquilt.vertical.recipe import Recipe
from fedquilt.vertical.siamese import corrupted_views_loss, parties_loss, predictor_of


def traits(settings: Mapping[str, Any]) -> Traits:
    """Without classifiers of their own, parties send no prototypes."""
    whole = Traits(across=True, merge="own", sends_scores=True, vertical=True)
    return whole if settings["labels"] else replace(whole, discloses=(EMBEDDINGS, GRADIENTS, COUNTS))


LOCAL, CROSS = "local", "cross"
"""The names of the two predictors of a party."""


def vfl_hssl(
    federation: Federation,
    *,
    minibatches: Few = 4,
    local: Penalty = 1.0,
    cross: Penalty = 1.0,
    corruption: Part = 0.3,
    hidden: Count = 32,
    labels: bool = True,
    temperature: Positive = 0.1,
) -> Method:
    """Self-supervision with split learning: parties predict corrupted views of own rows, and each other's of aligned.

    Parameters
    ----------
    federation : the vertical federation.
    minibatches : minibatches of aligned rows in a round. Gradients of all but the first are late by as many steps.
    local : weight of the self-supervision on a party's own rows.
    cross : weight of the prediction of other parties' embeddings of aligned rows.
    corruption : share of a row's values that a view replaces by those of other rows.
    hidden : width of the predictors' hidden layers.
    labels : whether every party also has a classifier of its own, which learns from the labels that the party knows
        and from gradients, and votes.
    temperature : cosines of these classifiers, and with them the logits of the linear one, are divided by it.

    Paper: fedhssl, protocol
    """

    def loss(of: Lesson) -> Tensor:
        total = local * corrupted_views_loss(of, LOCAL, corruption)
        if (aligned := of.aligned()) is not None:
            others = aligned.others.to(total.device)
            total = total + cross * parties_loss(of.extra, CROSS, of.embed(aligned.rows), others)
        if labels and of.labels is not None:
            total = total + functional.cross_entropy(cosines(of.embeddings, of.prototypes) / temperature, of.labels)
        return total

    def predictors(classes: int, width: int, rng: Rng) -> Params:
        return predictor_of(LOCAL, width, hidden, rng) | predictor_of(CROSS, width, hidden, rng)

    recipe = Recipe(
        ballot(temperature) if labels else Joint(head_of, _head_loss, head_logits),
        OwnLoss(loss, extra=predictors),
        minibatches,
        prototypes=labels,
        relays=True,
    )
    return vertical_method("vfl-hssl", federation, recipe)


def _head_loss(tensors: Params, views: Views, labels: Tensor) -> Tensor:
    return functional.cross_entropy(head_logits(tensors, views), labels)
