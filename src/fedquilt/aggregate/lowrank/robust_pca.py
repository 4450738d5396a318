"""FedRPCA's mean of factors, in which the sparse, client-specific part of the clients' updates is scaled up.

Robust PCA splits the clients' updates of a factor, side by side as the columns of a matrix, into a matrix of low rank
(what clients have in common) and a sparse one (what single clients changed). Averaging divides what one client learned
by the number of clients; scaling the sparse part up makes good for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import common_dtype, normalised
from fedquilt.aggregate.lowrank.residual import mean_factors, scaled
from fedquilt.core.factors import Factors, Product

MOST_STEPS = 500
TOLERANCE = 1e-4
"""The splitting ends when both residuals of ADMM are below this, relative to the matrix and to the multiplier."""


class Split(NamedTuple):
    """A matrix as the sum of one of low rank and a sparse one, (m, n) each."""

    low_rank: Tensor
    sparse: Tensor


def robust_pca(matrix: Tensor) -> Split:
    """The minimiser of ``||L||_* + lambda ||S||_1`` with ``L + S = matrix`` and ``lambda = 1 / sqrt(max(m, n))``.

    Principal component pursuit by ADMM (Candes et al., 2011): in each step L and S are thresholded, in singular values
    and in entries, by thresholds over the penalty mu. Every ten steps mu is doubled or halved where one residual is
    ten times the other (Boyd et al., 2011), up to half of the steps, as ADMM converges for a constant mu.

    Paper: fedrpca, split
    """
    size = matrix.norm()
    if not bool(size):
        return Split(matrix, matrix)
    unit, weight = matrix / size, 1 / math.sqrt(max(matrix.shape))
    mu = unit.numel() / (4 * float(unit.abs().sum()))
    low = sparse = owed = torch.zeros_like(unit)  # owed: the multiplier of L + S = M, over mu
    for step in range(1, MOST_STEPS + 1):
        last = sparse
        low = _fewer_directions(unit - sparse + owed, 1 / mu)
        sparse = _fewer_entries(unit - low + owed, weight / mu)
        missing = unit - low - sparse
        owed = owed + missing
        primal, dual = float(missing.norm()), float((sparse - last).norm() / owed.norm())
        if max(primal, dual) <= TOLERANCE:
            break
        if step % 10 == 0 and step <= MOST_STEPS // 2:
            growth = 2.0 if primal > 10 * dual else 0.5 if dual > 10 * primal else 1.0
            mu, owed = mu * growth, owed / growth
    return Split(low * size, sparse * size)


def client_specific(updates: Tensor) -> Tensor:
    """The sparse part of the clients' updates, (size, clients), without what all clients share in it.

    Where an entry of the sparse part has the same sign at every client, its smallest magnitude is common to all and is
    taken off. Clients with equal updates, or one client alone, therefore have no specific part.
    """
    sparse = robust_pca(updates).sparse
    common = sparse.amin(1).clamp(min=0) + sparse.amax(1).clamp(max=0)  # (size,)
    return sparse - common[:, None]


def amplified_mean(server: Factors, clients: Sequence[Factors], sparse_scale: float = 2.0) -> Product:
    """FedRPCA's factors: the server's plus ``sum_k p_k (L_k + beta S_k)``, for A and B apart; the scale is in B.

    ``L_k + S_k`` is the client's update, S_k its specific part and beta ``sparse_scale``. At 1 the result is the mean
    of factors. A client of weight 0 has no part in the splitting.

    Raises
    ------
    RoundError, ValueError
        as ``mean_factors``; ValueError also if the server's rank is another, or ``sparse_scale`` is below 0.

    Paper: fedrpca, mean
    """
    if not sparse_scale >= 0:
        raise ValueError(f"sparse_scale is {sparse_scale}; it must be at least 0")
    start, *own = scaled([server, *clients])
    mean = mean_factors(own)
    own = [client for client in own if client.weight]
    parts = mean.B.new_tensor(normalised([client.weight for client in own]))  # (clients,)

    def amplified(average: Tensor, begun: Tensor, ended: Sequence[Tensor]) -> Tensor:
        updates = torch.stack([(end - begun).flatten() for end in ended], dim=1)  # (size, clients)
        return average + (sparse_scale - 1) * (client_specific(updates) @ parts).view_as(average)

    made = Product(
        amplified(mean.B, start.B, [client.B for client in own]),
        amplified(mean.A, start.A, [client.A for client in own]),
    )
    return made.to(common_dtype(clients))


def _fewer_directions(matrix: Tensor, threshold: float) -> Tensor:
    """The matrix with its singular values lowered by ``threshold``, to 0 at least.

    It has as many columns as there are clients, so that its small Gram matrix is decomposed instead of itself.
    """
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)  # (n,), (n, n)
    kept = (1 - threshold / squares.clamp(min=0).sqrt()).clamp(min=0)
    thresholded: Tensor = matrix @ (vectors * kept) @ vectors.T
    return thresholded


def _fewer_entries(matrix: Tensor, threshold: float) -> Tensor:
    """The matrix with its entries' magnitudes lowered by ``threshold``, to 0 at least."""
    return matrix - matrix.clamp(-threshold, threshold)
