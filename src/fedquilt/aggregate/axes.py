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
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.core.rng import Rng

RIDGE = 1e-3
"""The default ridge, as a fraction of the mean variance of a model's features."""

POINT = "point"
"""First part of the name of the common coordinates of the public inputs at one place: ``point.<site>.<slot>``."""

_PART = 2**22
"""Numbers of a feature matrix that are converted to float64 at a time: 32 MiB."""

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
    variance, floor, vectors = principal(features, rank, ridge)
    return vectors * (variance / (variance + floor)).sqrt()


def principal(features: Tensor, rank: int, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """The R = min(``rank``, N, d) largest variances of features, the ridge, and the inputs' unit vectors, (N, R)."""
    centre, kept = mean(features), min(rank, *features.shape)
    variance, vectors = _spectrum(features, centre, kept, scale=1 / len(features))
    return variance, _ridge(features, centre, ridge), vectors


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
    squares, vectors = _spectrum(joint, torch.zeros_like(joint[0]), rank, scale=1.0)
    return Consensus(math.sqrt(len(joint)) * signed(vectors), squares / len(bases))


def solve(features: Tensor, points: Tensor, *, ridge: float = RIDGE) -> Axes:
    """A model's axes, from its features (N, d) and the common coordinates (N, r) of the same inputs.

    For fewer inputs than features the encoder is found as ``(X' (X X' / N + e I)^-1 Z / N)'``, which is the same.
    """
    centre = mean(features)
    encoder, cross = regression(features, centre, points, ridge)
    return Axes(centre, encoder, cross)


def regression(features: Tensor, centre: Tensor, points: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The ridge solution (r, d) that takes features less ``centre`` to the points, and ``X' Z / N``, (d, r)."""
    count, cross = len(features), times(features, centre, points.double()) / len(features)
    matrix = _gram(features, centre).div_(count)
    matrix.diagonal().add_(_ridge(features, centre, ridge))
    torch.linalg.cholesky(matrix, out=matrix)
    if count > features.shape[1]:
        encoder = torch.cholesky_solve(cross, matrix)
    else:
        encoder = times(features, centre, torch.cholesky_solve(points.double() / count, matrix))
    return encoder.T, cross


def decoder(features: Tensor, points: Tensor) -> Tensor:
    """The decoder of ``solve`` alone, (d, r)."""
    return times(features, mean(features), points.double()) / len(features)


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


def rotation(rank: int, rng: Rng) -> Tensor:
    """A random orthogonal matrix (r, r), of uniform distribution, drawn from ``rng``.

    It is the orthogonal factor of a Gaussian matrix, in the decomposition whose triangular factor has a positive
    diagonal.
    """
    q, r = torch.linalg.qr(torch.randn(rank, rank, generator=rng.torch(), dtype=torch.float64))
    signed: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return signed


def _spectrum(features: Tensor, centre: Tensor, kept: int, *, scale: float) -> tuple[Tensor, Tensor]:
    """Squared singular values of the centred features times ``scale``, and left singular vectors (N, ``kept``).

    The largest come first. They come from the smaller of the two Gram matrices. A direction without variance has the
    vector 0.
    """
    squares, found = _leading(_gram(features, centre), kept)
    largest = squares[0]
    if len(features) > features.shape[1]:
        present = squares > largest * features.shape[1] * torch.finfo(squares.dtype).eps
        inverse = torch.where(present, squares.clamp_min(0), torch.inf).rsqrt()
        found = torch.cat([part @ found for part in _centred(features, centre, 0)]) * inverse
    return squares.clamp_min(0) * scale, found


def _gram(features: Tensor, centre: Tensor) -> Tensor:
    """The smaller of ``X X'`` and ``X' X`` for centred features X, (min(N, d), min(N, d))."""
    if len(features) > features.shape[1]:
        return _sum(_square(part) for part in _centred(features, centre, 0))
    return _sum(_square(part.T) for part in _centred(features, centre, 1))


def _square(part: Tensor) -> Tensor:
    """``part' part``. On the CPU numpy knows that it is symmetric, and computes half of it."""
    if part.device.type != "cpu":
        return part.T @ part
    array = part.numpy()
    return torch.from_numpy(array.T @ array)


def _leading(matrix: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The ``kept`` largest eigenvalues of a symmetric matrix, the largest first, and their eigenvectors, by columns."""
    if matrix.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrix)
    else:  # scipy finds only those that are wanted
        from scipy.linalg import eigh

        size = len(matrix)
        values, vectors = map(torch.from_numpy, eigh(matrix.numpy(), subset_by_index=(size - kept, size - 1)))
    return values.flip(0)[:kept], vectors[:, -kept:].flip(1)


def times(features: Tensor, centre: Tensor, other: Tensor) -> Tensor:
    """``X' Y`` for centred features X (N, d) and Y (N, r)."""
    return torch.cat([part.T @ other for part in _centred(features, centre, 1)])


def mean(features: Tensor) -> Tensor:
    """The mean of features (N, d), (d,), in float64."""
    return torch.cat([part.mean(0) for part in _centred(features, features.new_zeros(features.shape[1]).double(), 1)])


def _ridge(features: Tensor, centre: Tensor, ridge: float) -> Tensor:
    """The ridge of these features: a fraction of their mean variance; a little above 0 where they do not vary."""
    total = _sum(part.square().sum() for part in _centred(features, centre, 0))
    return (ridge * (total / features.numel())).clamp_min(torch.finfo(torch.float64).tiny)


def _centred(features: Tensor, centre: Tensor, dim: int) -> Iterator[Tensor]:
    """The features in float64 without their mean, in parts along a dimension: no second copy of all is made."""
    parts = features.split(max(1, _PART * features.shape[dim] // max(1, features.numel())), dim)
    centres = centre.split([part.shape[1] for part in parts]) if dim else repeat(centre)
    for part, own in zip(parts, centres, strict=False):
        yield part.double() - own


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """The sum, in place of the first."""
    own = iter(parts)
    total = next(own)
    for part in own:
        total += part
    return total


def signed(vectors: Tensor) -> Tensor:
    """Columns, each times the sign that makes its entry of largest magnitude positive."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)
