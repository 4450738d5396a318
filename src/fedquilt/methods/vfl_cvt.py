"""Cross-view training, like FedCVT: estimates of what other parties would make of a row, and labels by agreement."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.settings import Few, Part, Penalty, Positive
from fedquilt.methods.traits import Traits
from fedquilt.vertical.ballot import ballot
from fedquilt.vertical.estimation import agreed, estimated, inserted
from fedquilt.vertical.lesson import Facts, Lesson, OwnLoss
from fedquilt.vertical.method import vertical_method
from fedquilt.vertical.prototypes import cosines
from fedquilt.vertical.recipe import Recipe
from fedquilt.vertical.relay import JOINT

TRAITS = Traits(across=True, merge="own", sends_scores=True, vertical=True)

HEAD = ("head.weight", "head.bias")
"""The joint classifier, which all parties train."""


def vfl_cvt(
    federation: Federation,
    *,
    minibatches: Few = 4,
    estimates: Penalty = 1.0,
    attention: Positive = 0.1,
    threshold: Part = 0.7,
    temperature: Positive = 0.1,
) -> Method:
    """Cross-view training: the joint classifier also learns from unaligned rows, with estimates of missing embeddings.

    Parameters
    ----------
    federation : the vertical federation.
    minibatches : minibatches of aligned rows in a round. Gradients of all but the first are late by as many steps.
    estimates : weight of the joint classifier's cross-entropy on unaligned rows.
    attention : temperature of the weights of aligned rows in an estimate: the lower, the fewer rows count.
    threshold : probability that both classifiers must give to the class on which they agree, for a row without label.
    temperature : cosines of every party's own classifier, and logits of the joint one, are divided by it.

    Paper: fedcvt, protocol
    """

    def loss(of: Lesson) -> Tensor:
        own = cosines(of.embeddings, of.prototypes) / temperature
        if of.facts is None:  # in the first round nothing is known of the others
            return 0.0 * own.sum() if of.labels is None else functional.cross_entropy(own, of.labels)
        joint = _joint_logits(of, of.facts, attention) / temperature
        if of.labels is None:
            classes, sure = agreed(torch.stack([own, joint]), threshold)
        else:
            classes, sure = of.labels, torch.ones_like(of.labels, dtype=torch.bool)
        each = [functional.cross_entropy(logits, classes, reduction="none") for logits in (own, joint)]
        return ((each[0] + estimates * each[1]) * sure).mean()

    recipe = Recipe(ballot(temperature), OwnLoss(loss), minibatches, relays=True, shared=HEAD)
    return vertical_method("vfl-cvt", federation, recipe)


def _joint_logits(of: Lesson, facts: Facts, temperature: float) -> Tensor:
    """The joint classifier's logits of a minibatch, (n, C), with estimates of the other parties' embeddings."""
    with torch.no_grad():
        keys = of.embed(facts.rows)
    others = estimated(of.embeddings, keys, facts.others.to(keys), temperature)
    views = inserted(of.embeddings, others, of.place)
    weight, bias = (of.extra[JOINT + name] for name in HEAD)
    return functional.linear(views, weight, bias)
