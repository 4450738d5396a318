"""How the active party joins scores: a gate over parties, and a mask of the classes that each party knows."""

from __future__ import annotations

from torch import Tensor

_FEW = 1e-12
"""Added to the weight of a class before it divides, so that a class that nobody knows has the score 0."""


def gates(logits: Tensor, present: Tensor) -> Tensor:
    """The weight of each party for each row, (n, K), each row's sum 1.

    Parameters
    ----------
    logits
        What the gate's network says, (n, K).
    present
        Whether each party has the row, (n, K) or (K,), boolean; at least one has each.

    Paper: proto-evfl, gate
    """
    return logits.masked_fill(~present.expand_as(logits), float("-inf")).softmax(1)


def fused(scores: Tensor, weights: Tensor, knows: Tensor) -> Tensor:
    """The joint score of each row and class, (n, C): the gated mean over the parties that know the class.

    Parameters
    ----------
    scores
        The cosines of every party, (K, n, C).
    weights
        The gate's weights, (n, K); their scale does not matter.
    knows
        Whether each party has learned each class, (K, C), boolean. A class that no party knows has the score 0, between
        alike and unlike.

    Paper: proto-evfl, fusion
    """
    shares = weights.T.unsqueeze(-1) * knows.unsqueeze(1).to(scores.dtype)  # (K, n, C)
    total = shares.sum(0)
    return (shares * scores).sum(0) / (total + _FEW * weights.sum(1, keepdim=True))


def voted(scores: Tensor, voters: Tensor) -> Tensor:
    """The logarithm of the mean of several classifiers' probabilities, (n, C).

    Parameters
    ----------
    scores
        The logits of every classifier, (classifiers, n, C).
    voters
        Whether each classifier counts for each row, (n, classifiers), boolean; at least one does.

    Paper: combined-classifiers, sum-rule
    """
    there = voters.T.unsqueeze(-1)
    return ((scores.softmax(2) * there).sum(0) / there.sum(0)).log()
