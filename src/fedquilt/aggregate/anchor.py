"""Coordinates of models with different features, pairwise to the smallest of them, the anchor.

Every model reads the same N public inputs. At one module, with features ``X`` (N, d_in) before it and ``Y`` (N, d_out)
after it, the anchor draws A_1 (r, d_in) with orthonormal rows, and B_1 (d_out, r) with orthonormal columns in the span
of the R leading principal directions E_1 of its centred Y, ``B_1 = E_1 G``. Any model, the anchor included, solves

    A_c = polar(argmin_A |X_c A' - Z|^2)                Z = X_1 A_1'   (N, r), the anchor's rank-space outputs
    B_c = E_c D_c polar(Q_c' Q_1) K                     K = D_1^-1 G   (R, r), B_1 in whitened outputs

with ``D = (S^2 + e)^(1/2)`` of the standard deviations S along E, the ridge e, and whitened outputs
``Q = Y E D^-1 / sqrt(N)``. The polar factor of ``Q_c' Q_1 = V C U'`` is ``V U'``, which takes each canonical variate of
the anchor's outputs to the one that it correlates with most, so B_c is B_1 mapped by canonical correlation. What is
sent, (Z, Q_1, K), has no dimension of a model's width. All sums are in float64.

A model that is an orthogonal lift of the anchor, ``X_c = X_1 R'`` and ``Y_c = Y_1 S'`` with ``R'R = S'S = I``, gets
``A_c = A_1 R'`` and ``B_c = S B_1`` as the ridge goes to 0: the same rank-space outputs, and the lifted change.

Two models that are fitted to the anchor are not fitted to each other: what they share with it need not be the same.
``axes.consensus`` fits all at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedquilt.aggregate.axes import RIDGE, mean, principal, regression, signed, times
from fedquilt.core.rng import Rng


def rank_outputs(features: Tensor, rank: int, rng: Rng) -> Tensor:
    """The anchor's rank-space outputs ``Z = X A_1'``, (N, r), for rows of A_1 that are drawn and orthonormal."""
    return features.double() @ _orthonormal(features.shape[1], rank, rng)


def drawn_columns(outputs: Tensor, rank: int, kept: int, rng: Rng, *, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """The anchor's whitened outputs Q_1 (N, R), with R at most ``kept``, and its drawn B_1 in them, K (R, r).

    Parameters
    ----------
    outputs : its features after the module, (N, d_out).
    rank : r.
    kept : the largest number of principal directions.
    rng : the stream that B_1 is drawn from.
    ridge : the ridge of the features, as a fraction of their mean variance.
    """
    _, deviation, whitened = _whitened(outputs, kept, ridge)
    return whitened, _orthonormal(len(deviation), rank, rng) / deviation.unsqueeze(1)


def anchored_encoder(features: Tensor, points: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """A (r, d) with orthonormal rows, from a model's features (N, d) and the anchor's rank-space outputs (N, r).

    The features are not centred, as a module's input is not.

    Paper: fedmosaic, encoder
    """
    origin = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    return polar(regression(features, origin, points, ridge)[0])


def anchored_decoder(outputs: Tensor, anchor: Tensor, columns: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """B (d, r), from a model's outputs (N, d), the anchor's whitened ones (N, R), and its B in these (R, r).

    As many principal directions of the outputs are kept as the anchor kept of its own, if there are so many.

    Paper: fedmosaic, decoder
    """
    directions, deviation, whitened = _whitened(outputs, anchor.shape[1], ridge)
    mapped = polar(whitened.T @ anchor.double()) @ columns.double()  # (R_c, r), in this model's whitened outputs
    return directions @ (deviation.unsqueeze(1) * mapped)


def polar(matrix: Tensor) -> Tensor:
    """The polar factor ``U V'`` of ``U S V'``: the nearest matrix with orthonormal rows, or columns if it is tall."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = u @ v
    return nearest


def _whitened(features: Tensor, kept: int, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Principal directions E (d, R), the ridged deviations along them (R,), and the whitened features Q (N, R)."""
    variance, floor, vectors = principal(features, kept, ridge)
    vectors, deviation = signed(vectors), (variance + floor).sqrt()
    present = variance > variance.max() * len(features) * torch.finfo(variance.dtype).eps
    inverse = torch.where(present, variance, torch.inf).rsqrt()  # 0 along a direction without variance
    directions = times(features, mean(features), vectors * inverse) / math.sqrt(len(features))
    return directions, deviation, vectors * variance.sqrt() / deviation


def _orthonormal(rows: int, columns: int, rng: Rng) -> Tensor:
    """A drawn matrix (rows, columns) with orthonormal columns."""
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=rng.torch(), dtype=torch.float64))
    drawn: Tensor = q * r.diagonal().sign()  # so that it does not depend on the machine
    return drawn
