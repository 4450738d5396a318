"""Vertical learning in three messages, like one-shot VFL: gradients are clustered, and clusters are learned alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Few, Part, Penalty, Positive
from fedquilt.core.types import Params
from fedquilt.methods.traits import Traits
from fedquilt.vertical.ballot import ballot
from fedquilt.vertical.corruption import corrupted
from fedquilt.vertical.lesson import Lesson, OwnLoss
from fedquilt.vertical.one_shot import CLUSTERS, one_shot_method
from fedquilt.vertical.prototypes import cosines, unit
from fedquilt.vertical.recipe import Recipe

TRAITS = Traits(across=True, merge="own", sends_scores=True, vertical=True)


def vfl_few_shot(
    federation: Federation,
    *,
    minibatches: Few = 4,
    unlabelled: Penalty = 1.0,
    threshold: Part = 0.95,
    corruption: Part = 0.3,
    temperature: Positive = 0.1,
) -> Method:
    """Three messages for each party: embeddings, gradients that it clusters and learns from, and new embeddings.

    Parameters
    ----------
    federation : the vertical federation.
    minibatches : minibatches of aligned rows that the active party learns from for each round of the run.
    unlabelled : weight of the semi-supervised loss on rows without labels.
    threshold : probability above which a row's likeliest cluster counts as its label.
    corruption : share of a row's values that are replaced by those of other rows when its cluster is learned.
    temperature : cosines with prototypes, of clusters and of classes, and logits of the joint classifier are divided by
        it.

    Paper: few-shot-vfl, protocol
    """

    def loss(of: Lesson) -> Tensor:
        total, aligned = 0.0 * of.embeddings.sum(), of.aligned()
        if aligned is not None:
            logits = cosines(of.embed(aligned.rows), of.extra[CLUSTERS]) / temperature
            total = total + functional.cross_entropy(logits, aligned.clusters.to(logits.device))
        if of.labels is not None:
            return total + functional.cross_entropy(cosines(of.embeddings, of.prototypes) / temperature, of.labels)
        if aligned is not None:
            hard = of.embed(corrupted(of.rows, corruption, of.rng.child("corrupted")))
            easy, hard = (cosines(view, of.extra[CLUSTERS]) / temperature for view in (of.embeddings, hard))
            total = total + unlabelled * confident_loss(easy, hard, threshold)
        return total

    def clusters(count: int, width: int, rng: Rng) -> Params:
        return {CLUSTERS: unit(torch.randn(count, width, generator=rng.torch()))}

    recipe = Recipe(ballot(temperature, only_active=True), OwnLoss(loss, extra=clusters), minibatches)
    return one_shot_method("vfl-few-shot", federation, recipe)


def confident_loss(easy: Tensor, hard: Tensor, threshold: float) -> Tensor:
    """The cross-entropy of corrupted rows for the classes that the rows as they are have with confidence.

    ``easy`` and ``hard`` are the logits of the rows as they are and corrupted, (n, C); a row whose likeliest class has
    a probability of at most ``threshold`` counts as 0.

    Paper: fixmatch, loss
    """
    probabilities, classes = easy.detach().softmax(1).max(1)
    return (functional.cross_entropy(hard, classes, reduction="none") * (probabilities > threshold)).mean()
