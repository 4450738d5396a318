"""Common coordinates of models with different features: generalised canonical correlation on public inputs.

Every model reads the same N public inputs. Features ``X`` (N, d) of one model at one place, centred by their mean m,
have the covariance ``C = X' X / N`` and the ridge ``e``, a small fraction of the mean variance. MAXVAR looks for the r
uncorrelated directions ``Z`` (N, r) of the inputs on which the models agree most:

    Q_c = X_c (C_c + e_c I)^(-1/2) / sqrt(N)         one model's inputs, whitened
    Z   = sqrt(N) U_r                                U_r: leading left singular vectors of [Q_1 ... Q_K]
    A_c = ((C_c + e_c I)^-1 X_c' Z / N)'             encoder (r, d_c): features into common coordinates
    B_c = X_c' Z / N                                 decoder (d_c, r): common coordinates into features

Only products ``Q Q'`` matter, so a rotation of a model's features changes nothing, and a model may send any basis of
its whitened features, which has no dimension of the model's width (``basis``). All sums are in float64. Signs and order
are fixed: directions by falling agreement, each with its largest entry positive.

Source: Kettenring, Canonical analysis of several sets of variables, 1971 (MAXVAR).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-3
"""The default ridge, as a fraction of the mean variance of a model's features."""

POINT = "point"
"""First part of the name of the common coordinates of the public inputs at one place: ``point.<site>.<slot>``."""

SEEN = "seen"
"""First part of the name of one model's coordinates of held-out public inputs: ``seen.<site>.<slot>``."""


def is_point(name: str) -> bool:
    """Whether a tensor of this name holds common coordinates of public inputs."""
    return name.startswith(POINT + ".")


class Axes(NamedTuple):
    """One model's way into the common coordinates and back, at one place.

    Attributes
    ----------
    centre : the mean m of the features, (d,).
    encoder : A, (r, d): features x have the coordinates ``A (x - m)``.
    decoder : B, (d, r): coordinates z explain the part ``B z`` of the centred features.
    """

    centre: Tensor
    encoder: Tensor
    decoder: Tensor


class Consensus(NamedTuple):
    """The common coordinates of the public inputs.

    Attributes
    ----------
    points : Z, (N, r), with ``Z' Z = N I``.
    agreement : for each coordinate, the share of it that the models explain on the mean, from 1/K to 1, (r,).
    """

    points: Tensor
    agreement: Tensor


def basis(features: Tensor, rank: int, *, ridge: float = RIDGE) -> Tensor:
    """A basis of a model's whitened features, (N, R): all that the consensus needs to know of the model.

    Its columns are the R = min(``rank``, N, d) leading principal components, each scaled by
    ``sqrt(s^2 / (s^2 + e))``, where s^2 is its variance. With R = d it is exact: ``basis basis' = Q Q'``.
    """
    centred = features.double() - features.double().mean(0)
    variance, vectors = _spectrum(centred)
    kept = min(rank, *features.shape)
    variance, vectors = variance[:kept], vectors[:, :kept]
    return vectors * (variance / (variance + _ridge(centred, ridge))).sqrt()


def consensus(bases: Sequence[Tensor], rank: int) -> Consensus:
    """The common coordinates of inputs of which every model gave a ``basis``.

    Raises
    ------
    ValueError
        if there are no bases, they are of different numbers of inputs, or they span fewer than ``rank`` directions.
    """
    if not bases or len({len(one) for one in bases}) > 1:
        raise ValueError(f"bases are of {[len(one) for one in bases]} inputs; all must be of the same ones")
    joint = torch.cat([one.double() for one in bases], 1)
    if rank > min(joint.shape):
        raise ValueError(f"rank is {rank}; {joint.shape[0]} inputs and bases of {joint.shape[1]} columns allow less")
    # the larger side is thousands long and the smaller one hundreds: the eigenvectors of the smaller Gram matrix
    squares, vectors = _spectrum(joint, scale=1.0)
    return Consensus(math.sqrt(len(joint)) * _signed(vectors[:, :rank]), squares[:rank] / len(bases))


def solve(features: Tensor, points: Tensor, *, ridge: float = RIDGE) -> Axes:
    """A model's axes, from its features (N, d) and the common coordinates (N, r) of the same inputs."""
    centre = features.double().mean(0)
    centred, count = features.double() - centre, len(features)
    cross = centred.T @ points.double() / count
    covariance = centred.T @ centred / count
    covariance.diagonal().add_(_ridge(centred, ridge))
    encoder = torch.cholesky_solve(cross, torch.linalg.cholesky(covariance)).T
    return Axes(centre, encoder, cross)


def coordinates(axes: Axes, features: Tensor) -> Tensor:
    """The common coordinates ``A (x - m)`` of features (..., d), (..., r)."""
    return (features.to(axes.encoder.dtype) - axes.centre) @ axes.encoder.T


def agreement(seen: Sequence[Tensor]) -> Tensor:
    """For each coordinate the mean correlation over all pairs of models that read the same inputs, (r,).

    ``seen`` holds every model's ``coordinates`` of the inputs, (N, r). Inputs that were not used to find the axes give
    an honest figure; unrelated features give 0, with a standard deviation of ``1 / sqrt(N)``.

    Raises
    ------
    ValueError
        if there are fewer than two models.
    """
    if len(seen) < 2:
        raise ValueError(f"{len(seen)} model; at least two can agree")
    scaled = [(one - one.mean(0)).double() for one in seen]
    scaled = [one / one.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny) for one in scaled]
    pairs = [(one * other).sum(0) for k, one in enumerate(scaled) for other in scaled[:k]]
    return torch.stack(pairs).mean(0)


def _spectrum(matrix: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Squared singular values over N (or times ``scale``) and left singular vectors (N, c), largest first.

    They come from the smaller of the two Gram matrices. A direction without variance has the vector 0.
    """
    rows, columns = matrix.shape
    factor = 1 / rows if scale is None else scale
    if rows <= columns:
        squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    else:
        squares, right = torch.linalg.eigh(matrix.T @ matrix)
        present = squares > squares.max() * columns * torch.finfo(squares.dtype).eps
        inverse = torch.where(present, squares.clamp_min(0), torch.inf).rsqrt()
        vectors = (matrix @ right) * inverse
    return squares.clamp_min(0).flip(0) * factor, vectors.flip(1)


def _ridge(centred: Tensor, ridge: float) -> Tensor:
    """The ridge of these features: a fraction of their mean variance; a little above 0 where they do not vary."""
    return (ridge * centred.square().mean()).clamp_min(torch.finfo(torch.float64).tiny)


def _signed(vectors: Tensor) -> Tensor:
    """Columns, each times the sign that makes its entry of largest magnitude positive."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)
