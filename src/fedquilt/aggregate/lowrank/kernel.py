"""The low-rank kernel: weighted sums of adapters, and their best approximations of a given rank.

No function but ``dense`` forms a d_out x d_in matrix. Scales are always included: a client's change of a weight is
``D_k = s_k B_k A_k`` with its own ``s_k`` (alpha/r or alpha/sqrt(r)), so that clients with different ranks and alphas
are averaged like their dense changes. ``A`` is (r, d_in) and ``B`` (d_out, r), whatever the orientation of the base's
weight; only ``dense`` handles that of Conv1D.

Sums, QR and SVD are computed in float64 (float32 on devices without it). This costs little, as the tall matrices are
thin and the core is small, and it separates real directions from rounding errors at 1e-16 instead of 1e-7. Results have
the dtype of the arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedquilt.core.errors import RoundError
from fedquilt.core.factors import Factors, Product
from fedquilt.core.params import wide

WIDEST = 512
"""Columns of the clients' stacked factors from which on ``folded`` approximates."""


class Svd(NamedTuple):
    """``U diag(S) Vh``, (d_out, c), (c,), (c, d_in): S is descending; where it is 0, the vectors are 0 too."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def normalised(weights: Sequence[float]) -> list[float]:
    """``w_k / sum_j w_j``.

    Raises
    ------
    RoundError
        if there are no weights: no client answered.
    ValueError
        if a weight is below 0 or not finite, or all are 0.
    """
    if not weights:
        raise RoundError("no adapters to combine; at least one client must answer")
    total = math.fsum(weights)
    if not (math.isfinite(total) and min(weights) >= 0 and total > 0):
        raise ValueError(f"weights are {list(weights)}; they must be finite and at least 0, and not all 0")
    return [weight / total for weight in weights]


def stacked(clients: Sequence[Factors], *, keep_wide: bool = False) -> Product:
    """The mean of the clients' changes, exactly: ``B_stack @ A_stack = sum_k w_k s_k B_k A_k`` with ``sum_k w_k = 1``.

    ``B_stack = [w_1 s_1 B_1, w_2 s_2 B_2, ...]`` is (d_out, R) and ``A_stack`` the A_k below each other, (R, d_in),
    where R is the sum of the ranks. Weight and scale are in one factor only: in both, they would be squared.

    The result has the clients' dtype; with ``keep_wide`` it is in float64, for a decomposition that follows.

    Raises
    ------
    RoundError, ValueError
        as ``normalised``; ValueError if clients differ in d_in or d_out, or one's B and A in rank.

    Paper: flora, stack
    """
    parts = normalised([client.weight for client in clients])
    check_factors(clients)
    columns = [wide(c.B.detach()) * (p * c.scale) for p, c in zip(parts, clients, strict=True)]
    product = Product(torch.cat(columns, dim=1), torch.cat([wide(c.A.detach()) for c in clients]))
    return product if keep_wide else product.to(common_dtype(clients))


def folded(clients: Sequence[Factors], rank: int) -> Svd:
    """The first ``rank`` singular values and vectors of the mean of the clients' changes, in time linear in clients.

    A stack of at most ``WIDEST`` columns is decomposed as it is. A longer one is folded whenever it gets there: the
    best approximation of a rank of ``max(WIDEST / 2, 4 rank)`` takes its place, and further clients follow. If the
    parts that are left out have norms e_1, e_2, ..., then the result D~ of rank r is no further from the mean D than
    ``||D - D_r|| + 2 sum e_i``, where D_r is the best approximation.

    Raises
    ------
    RoundError, ValueError
        as ``stacked``.
    """
    shares = normalised([client.weight for client in clients])
    check_factors(clients)
    kept = max(WIDEST // 2, 4 * rank)
    parts: list[Product] = []
    for share, client in zip(shares, clients, strict=True):
        if parts and sum(part.A.shape[0] for part in parts) + client.A.shape[0] > max(WIDEST, 2 * kept):
            whole = svd(summed(parts), kept)
            parts = [Product(whole.U * whole.S, whole.Vh)]
        parts.append(Product(wide(client.B.detach()) * (share * client.scale), wide(client.A.detach())))
    return svd(summed(parts), rank)


def svd(product: Product, rank: int | None = None) -> Svd:
    """The singular value decomposition of the matrix: all ``min(R, d_out, d_in)`` values, or the first ``rank``.

    QR of both factors, ``B = Q_B R_B`` and ``A^T = Q_A R_A``, then the SVD of the small core ``R_B R_A^T``:
    ``O((d_in + d_out) R^2 + R^3)``. The sign of each pair of vectors makes the largest entry of U, by magnitude,
    positive. Singular values that are 0 up to rounding are set to 0, with their vectors, as the directions of these
    would be arbitrary and depend on the machine and on the order of the clients.
    """
    dtype = torch.promote_types(product.B.dtype, product.A.dtype)
    left, right = _Reflected.of(product.B), _Reflected.of(product.A.T)
    u, s, vh = torch.linalg.svd(left.triangle() @ right.triangle().T, full_matrices=False)  # of at most (R, R)
    s = s[:rank]
    u, vh = left.turned(u[:, :rank]), right.turned(vh[:rank].T).T  # (d_out, c), (c, d_in)
    peak = u.gather(0, u.abs().argmax(0, keepdim=True))  # (1, c)
    noise = torch.finfo(s.dtype).eps * max(len(u), vh.shape[1], 1)
    alive = s > noise * s[:1]
    sign = torch.where(peak < 0, -1.0, 1.0).to(u.dtype) * alive  # (1, c): 1, -1, or 0 for what is cut
    return Svd((u * sign).to(dtype), (s * alive).to(dtype), (vh * sign.T).to(dtype))


def leading(parts: Svd, rank: int) -> Svd:
    """The first ``rank`` singular values and vectors, padded with zeros if there are fewer.

    The zeros give an adapter of this rank its shapes, and add nothing to the matrix.
    """
    if rank < 0:
        raise ValueError(f"rank is {rank}; it must be at least 0")
    u, s, vh = (parts.U[:, :rank], parts.S[:rank], parts.Vh[:rank])
    more = rank - len(s)
    if more > 0:
        u, s = torch.cat([u, u.new_zeros(len(u), more)], dim=1), torch.cat([s, s.new_zeros(more)])
        vh = torch.cat([vh, vh.new_zeros(more, vh.shape[1])])
    return Svd(u, s, vh)


def truncated(product: Product, rank: int) -> Svd:
    """The best approximation of the matrix with this rank, as singular values and vectors.

    No matrix of this rank is nearer in the Frobenius norm; the distance is ``sqrt(sum_{i > rank} S_i^2)``.

    Paper: flexlora, best-rank
    """
    return leading(svd(product, max(rank, 0)), rank)


def redistributed(
    parts: Svd, rank: int, scale: float = 1.0, *, split: Literal["left", "even"] = "left", spare: Tensor | None = None
) -> Product:
    """``(B, A)`` of an adapter with this rank and scale: ``scale * B @ A`` is the best approximation of ``parts``.

    The factors of a lower rank are the first columns and rows of those of a higher rank.

    Parameters
    ----------
    parts
        The matrix, (d_out, d_in), as singular values and vectors.
    rank, scale
        The adapter's rank, at least 0, and its scale, above 0.
    split
        Which factor takes the singular values: ``"left"``, ``B = U S / scale`` and ``A = Vh`` (as in the released
        code), or ``"even"``, ``sqrt(S / scale)`` on both sides.
    spare
        Rows of A, (rank, d_in), for directions whose singular value is 0, where B is 0, as in a fresh adapter. The
        product is the same, but if both factors were 0, their gradients would stay 0 forever.

    Raises
    ------
    ValueError
        if ``spare`` has another shape, the scale is not above 0, or the split is unknown.

    Paper: flexlora, redistribute
    """
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be above 0")
    u, s, vh = leading(parts, rank)
    if split == "left":
        product = Product(u * (s / scale), vh)
    elif split == "even":
        root = (s / scale).sqrt()
        product = Product(u * root, vh * root[:, None])
    else:
        raise ValueError(f"split is '{split}'; it must be 'left' or 'even'")
    if spare is None:
        return product
    if spare.shape != vh.shape:
        raise ValueError(f"spare rows are {tuple(spare.shape)}; the factor A is {tuple(vh.shape)}")
    return product._replace(A=torch.where(s[:, None] == 0, spare.to(vh.dtype), product.A))


def summed(products: Sequence[Product], signs: Sequence[float] | None = None) -> Product:
    """The sum of low-rank matrices, each times its sign if given, with the sum of their ranks."""
    signs = [1.0] * len(products) if signs is None else signs
    return Product(
        torch.cat([sign * product.B for sign, product in zip(signs, products, strict=True)], dim=1),
        torch.cat([product.A for product in products]),
    )


def norm(product: Product) -> float:
    """The Frobenius norm ``||B A||_F``, computed from the small core.

    QR is used because the squares in ``sqrt(tr((B^T B) (A A^T)))`` cancel: a difference of 0 would give 1e-8.
    """
    return float((_Reflected.of(product.B).triangle() @ _Reflected.of(product.A.T).triangle().T).norm())


def product_distance(left: Product, right: Product) -> float:
    """The distance ``||B_1 A_1 - B_2 A_2||_F``, for any two ranks."""
    wider = [Product(wide(p.B.detach()), wide(p.A.detach())) for p in (left, right)]
    return norm(summed(wider, (1.0, -1.0)))


def dense(product: Product, *, fan_in_fan_out: bool = False) -> Tensor:
    """The dense matrix in the shape of the base's weight: (d_out, d_in), or (d_in, d_out) for Conv1D (GPT-2)."""
    matrix = (wide(product.B.detach()) @ wide(product.A.detach())).to(
        torch.promote_types(product.B.dtype, product.A.dtype)
    )
    return matrix.T if fan_in_fan_out else matrix


class _Reflected(NamedTuple):
    """The QR decomposition of a tall matrix in LAPACK's form: R, and Q as Householder reflections.

    Only products of Q with a few vectors are needed, which cost a fraction of Q itself.
    """

    packed: Tensor  # (d, R)
    tau: Tensor  # (min(d, R),)

    @staticmethod
    def of(matrix: Tensor) -> _Reflected:
        return _Reflected(*torch.geqrf(wide(matrix.detach())))

    def triangle(self) -> Tensor:
        return self.packed[: len(self.tau)].triu()  # (min(d, R), R)

    def turned(self, vectors: Tensor) -> Tensor:
        """``Q @ vectors``, (min(d, R), c) -> (d, c)."""
        below = vectors.new_zeros(len(self.packed) - len(vectors), vectors.shape[1])
        return torch.ormqr(self.packed[:, : len(self.tau)], self.tau, torch.cat([vectors, below]))


def check_factors(clients: Sequence[Factors]) -> None:
    """Raise ValueError if a client's B and A differ in rank, or clients differ in d_in or d_out."""
    for number, client in enumerate(clients):
        if client.B.dim() != 2 or client.A.dim() != 2 or client.B.shape[1] != client.A.shape[0]:
            raise ValueError(f"adapter {number}: B is {tuple(client.B.shape)} and A {tuple(client.A.shape)}")
        sizes, first = (len(client.B), client.A.shape[1]), (len(clients[0].B), clients[0].A.shape[1])
        if sizes != first:
            raise ValueError(f"adapter {number} is for a weight of {sizes}, adapter 0 for one of {first}")


def common_dtype(clients: Sequence[Factors]) -> torch.dtype:
    """The common dtype to which the dtypes of all factors promote."""
    dtype = clients[0].B.dtype
    for client in clients:
        dtype = torch.promote_types(torch.promote_types(dtype, client.B.dtype), client.A.dtype)
    return dtype
