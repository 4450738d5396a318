"""The low-rank kernel: weighted sums of adapters, and their best approximations of a given rank.

Nothing here forms a d_out x d_in matrix, ``dense`` aside. Scales are always inside: a client's change of a weight is
``D_k = s_k B_k A_k`` with its own ``s_k`` (alpha/r or alpha/sqrt(r)), so clients of unlike rank and alpha mix as their
dense changes would. ``A`` is (r, d_in) and ``B`` (d_out, r) whatever the way the base keeps its weight; only ``dense``
knows of Conv1D's.

Sums, QR and SVD are done in float64 (float32 on devices without it): the tall matrices are thin and the core small, so
it costs little, and a direction that clients share is then told from rounding by 1e-16 and not by 1e-7. Results come
in the dtype of what was given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedquilt.core.errors import RoundError
from fedquilt.core.params import wide


class Factors(NamedTuple):
    """One client's adapter of one module: ``D = scale * B @ A``, (d_out, r) and (r, d_in), and the client's weight.

    Weights are relative: whatever uses them divides by their sum.
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0
    weight: float = 1.0


class Product(NamedTuple):
    """The matrix ``B @ A``, (d_out, R) times (R, d_in), kept as its two factors; R may be 0, which is zero."""

    B: Tensor
    A: Tensor

    @property
    def rank(self) -> int:
        """R, the number of columns of B: no less than the rank of the matrix."""
        return self.B.shape[1]

    def to(self, dtype: torch.dtype) -> Product:
        """The same in another dtype."""
        return Product(self.B.to(dtype), self.A.to(dtype))


class Svd(NamedTuple):
    """``U diag(S) Vh``, (d_out, c), (c,), (c, d_in): S falls; where it is 0 the column of U and row of Vh are 0 too."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def shares(weights: Sequence[float]) -> list[float]:
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
        raise ValueError(f"weights are {list(weights)}; they must be finite, none below 0 and one above")
    return [weight / total for weight in weights]


def stacked(clients: Sequence[Factors], *, keep_wide: bool = False) -> Product:
    """The mean of the clients' changes, exactly: ``B_stack @ A_stack = sum_k w_k s_k B_k A_k`` with ``sum_k w_k = 1``.

    ``B_stack = [w_1 s_1 B_1, w_2 s_2 B_2, ...]`` is (d_out, R) and ``A_stack`` the A_k below each other, (R, d_in),
    where R is the sum of the ranks. Weight and scale are in one factor only: in both, they would be squared.

    The result has the clients' dtype; with ``keep_wide`` float64, for what is decomposed next.

    Raises
    ------
    RoundError, ValueError
        as ``shares``; ValueError if clients differ in d_in or d_out, or one's B and A in rank.

    Paper: flora, stack
    """
    parts = shares([client.weight for client in clients])
    check_factors(clients)
    columns = [wide(c.B.detach()) * (p * c.scale) for p, c in zip(parts, clients, strict=True)]
    product = Product(torch.cat(columns, dim=1), torch.cat([wide(c.A.detach()) for c in clients]))
    return product if keep_wide else product.to(common_dtype(clients))


def svd(product: Product, rank: int | None = None) -> Svd:
    """The singular value decomposition of the matrix: all ``min(R, d_out, d_in)`` values, or the first ``rank``.

    QR of both factors, ``B = Q_B R_B`` and ``A^T = Q_A R_A``, then the SVD of the small core ``R_B R_A^T``:
    ``O((d_in + d_out) R^2 + R^3)``. Each pair of vectors has the sign that makes the entry of U which is largest in
    size positive. Singular values that are rounding errors of 0 are made 0, with their vectors: these would point
    anywhere, and elsewhere on another machine or for another order of clients.
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
    """The first ``rank`` singular values and vectors; zeros where there are not as many.

    The zeros keep the shapes that an adapter of this rank needs, and add nothing to the matrix.
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
    """The best approximation of the matrix of this rank, by singular values and vectors.

    No matrix of this rank is nearer in the Frobenius norm: what is missing is ``sqrt(sum_{i > rank} S_i^2)``.

    Paper: flexlora, best-rank
    """
    return leading(svd(product, max(rank, 0)), rank)


def redistributed(
    parts: Svd, rank: int, scale: float = 1.0, *, split: Literal["left", "even"] = "left", spare: Tensor | None = None
) -> Product:
    """``(B, A)`` of an adapter with this rank and scale: ``scale * B @ A`` is the best approximation of ``parts``.

    ``split`` says where the singular values go: ``"left"``, ``B = U S / scale`` and ``A = Vh`` (the released code's),
    or ``"even"``, ``sqrt(S / scale)`` on both sides. A client of lower rank gets the first columns and rows of one of
    higher rank.

    ``spare``, (rank, d_in), are the rows of A for directions whose singular value is 0, where B is 0, as in an adapter
    that is freshly drawn: the product is the same, but with both factors 0 no gradient would ever reach them again.

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


def reprojected(client: Factors, rank: int, scale: float, *, spare: Tensor | None = None) -> Product:
    """An adapter made over for another rank and scale: ``(B, A)`` whose change is the nearest to the client's.

    Exact where ``rank`` is no less than the client's. ``spare`` as in ``redistributed``.
    """
    whole = stacked([client._replace(weight=1.0)], keep_wide=True)
    return redistributed(svd(whole, rank), rank, scale, spare=spare).to(common_dtype([client]))


def summed(products: Sequence[Product], signs: Sequence[float] | None = None) -> Product:
    """The sum of low-rank matrices, each times its sign if given; the ranks add up."""
    signs = [1.0] * len(products) if signs is None else signs
    return Product(
        torch.cat([sign * product.B for sign, product in zip(signs, products, strict=True)], dim=1),
        torch.cat([product.A for product in products]),
    )


def norm(product: Product) -> float:
    """``||B A||_F``, from the small core.

    By QR and not as ``sqrt(tr((B^T B) (A A^T)))``, whose squares cancel: of a difference that is 0 it would leave 1e-8.
    """
    return float((_Reflected.of(product.B).triangle() @ _Reflected.of(product.A.T).triangle().T).norm())


def product_distance(left: Product, right: Product) -> float:
    """``||B_1 A_1 - B_2 A_2||_F``, for any two ranks."""
    wider = [Product(wide(p.B.detach()), wide(p.A.detach())) for p in (left, right)]
    return norm(summed(wider, (1.0, -1.0)))


def dense(product: Product, *, fan_in_fan_out: bool = False) -> Tensor:
    """The matrix itself, shaped as the base's weight: (d_out, d_in), or (d_in, d_out) for Conv1D (GPT-2).

    The one place that knows of the two orientations, and the one that forms the matrix: to change a base weight.
    """
    matrix = (wide(product.B.detach()) @ wide(product.A.detach())).to(
        torch.promote_types(product.B.dtype, product.A.dtype)
    )
    return matrix.T if fan_in_fan_out else matrix


class _Reflected(NamedTuple):
    """The QR decomposition of a tall matrix as LAPACK leaves it: R above the reflections that Q is made of.

    Only Q times a few vectors is ever wanted, which costs a fraction of Q itself.
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
    """Nothing, if the adapters are of one module.

    Raises
    ------
    ValueError
        if a client's B and A differ in rank, or clients in d_in or d_out.
    """
    for place, client in enumerate(clients):
        if client.B.dim() != 2 or client.A.dim() != 2 or client.B.shape[1] != client.A.shape[0]:
            raise ValueError(f"adapter {place}: B is {tuple(client.B.shape)} and A {tuple(client.A.shape)}")
        sizes, first = (len(client.B), client.A.shape[1]), (len(clients[0].B), clients[0].A.shape[1])
        if sizes != first:
            raise ValueError(f"adapter {place} is for a weight of {sizes}, adapter 0 for one of {first}")


def common_dtype(clients: Sequence[Factors]) -> torch.dtype:
    """The dtype that holds what every client sent."""
    dtype = clients[0].B.dtype
    for client in clients:
        dtype = torch.promote_types(torch.promote_types(dtype, client.B.dtype), client.A.dtype)
    return dtype
