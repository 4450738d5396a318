"""Conditional transport between the embeddings of rows and class prototypes, with the classes' prior probabilities.

With ``s`` (n, C) the cosines of n rows and C prototypes, the cost of carrying row i to class c is ``d_ic = 1 - s_ic``,
from 0 to 2. Each row is spread over classes, and each class over rows:

    forward   pi(c | i) = q_c exp(s_ic / t) / sum_c' q_c' exp(s_ic' / t)       e_i = sum_c pi(c | i) d_ic
    backward  pi(i | c) = w_i exp(s_ic / t) / sum_j w_j exp(s_jc / t)          b_c = sum_i pi(i | c) d_ic

q are the classes' prior probabilities, w the rows' weights; each sums to 1. All is computed with logarithms, so that a
weight or a probability of 0 removes its row or class and leaves no number that is not finite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Transport(NamedTuple):
    """Both plans and their costs.

    Attributes
    ----------
    forward : pi(c | i), (n, C); each row sums to 1.
    backward : pi(i | c), (n, C); each column sums to 1.
    row_costs : e, (n,), the expected cost of each row.
    class_costs : b, (C,), the expected cost of each class.
    """

    forward: Tensor
    backward: Tensor
    row_costs: Tensor
    class_costs: Tensor


def transport(scores: Tensor, prior: Tensor, weights: Tensor, temperature: float) -> Transport:
    """Carry rows to classes and classes to rows.

    Parameters
    ----------
    scores
        The cosines of rows and prototypes, (n, C).
    prior, weights
        The prior probabilities of the classes, (C,), and the weights of the rows, (n,); at least one of each is above
        0. Their scales do not matter.
    temperature
        t; the lower, the closer each plan is to the cheapest class, or row.

    Paper: proto-evfl, plans
    """
    costs = 1 - scores
    forward = (scores / temperature + prior.log()).softmax(1)
    backward = (scores / temperature + weights.log().unsqueeze(1)).softmax(0)
    return Transport(forward, backward, (forward * costs).sum(1), (backward * costs).sum(0))


def transport_loss(found: Transport, prior: Tensor, weights: Tensor, forward_share: float = 0.5) -> Tensor:
    """``rho sum_i w_i e_i + (1 - rho) sum_c q_c b_c``, from 0 to 2, with priors and weights that sum to 1.

    Paper: proto-evfl, transport-loss
    """
    rows, classes = weights @ found.row_costs, prior @ found.class_costs
    return forward_share * rows + (1 - forward_share) * classes


def likelihood(scores: Tensor, prior: Tensor, temperature: float) -> Tensor:
    """``sum_i log sum_c q_c exp(s_ic / t)``, which no step of ``prior.learned`` at rate 1 lowers."""
    return torch.logsumexp(scores / temperature + prior.log(), 1).sum()
