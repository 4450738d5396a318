"""The residual between the mean of factors and the mean of products, and two ways to correct it.

With ``B_k`` for ``s_k B_k`` and normalised weights p: ``sum_k p_k B_k A_k = B A + residual``, where ``B = sum_k p_k
B_k`` and ``A = sum_k p_k A_k`` are the means, and the residual is the cross-covariance of the factors, ``sum_k p_k (B_k
- B)(A_k - A)``. FedEx-LoRA adds it to the base; LoRA-FAIR fits B so that the residual becomes as small as possible.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import check_factors, common_dtype, leading, normalised, summed, svd
from fedquilt.core.factors import Factors, Product
from fedquilt.core.params import wide


def mean_factors(clients: Sequence[Factors]) -> Product:
    """The means ``B = sum_k p_k s_k B_k`` and ``A = sum_k p_k A_k`` of clients with equal ranks; the scale is in B.

    Raises
    ------
    RoundError, ValueError
        as ``lowrank.stacked``; ValueError also if the ranks differ.
    """
    _, mean, _ = _parts(clients)
    return mean.to(common_dtype(clients))


def residual(clients: Sequence[Factors]) -> Product:
    """The exact residual ``sum_k p_k s_k B_k A_k - B A``, as factors of rank ``(K - 1) r``.

    It is computed as ``sum_{k < K} p_k (B_k - B)(A_k - A_K)``: the deviations of B add up to 0, so that the last client
    can be left out, and small residuals are not differences of two large products. For one client, or if a factor is
    the same at all clients, it is exactly 0.

    Raises
    ------
    RoundError, ValueError
        as ``mean_factors``.

    Paper: fedex-lora, residual
    """
    parts, mean, own = _parts(clients)
    last = own[-1].A
    columns = [part * (client.B - mean.B) for part, client in zip(parts[:-1], own[:-1], strict=True)]
    rows = [client.A - last for client in own[:-1]]
    whole = Product(torch.cat([mean.B[:, :0], *columns], dim=1), torch.cat([mean.A[:0], *rows]))
    return whole.to(common_dtype(clients))


def rationed(
    change: Product, rank: int, carried: Product | None = None, *, carried_rank: int | None = None
) -> tuple[Product, Product]:
    """Split ``change + carried`` into its best approximation of this rank, which is sent, and the rest to carry over.

    Rank 0 sends nothing, which is FedIT. With a rank of ``change.rank`` or more, and nothing carried, the whole change
    is sent, which is exact FedEx-LoRA. The two parts sum to ``change + carried``, unless ``carried_rank`` bounds the
    rank of the rest, which could otherwise grow to full rank; its smallest singular values are then lost.

    Raises
    ------
    ValueError
        if a rank is below 0.
    """
    for name, value in (("rank", rank), ("carried_rank", carried_rank)):
        if value is not None and value < 0:
            raise ValueError(f"{name} is {value}; it must be at least 0")
    whole = change if carried is None else summed([change, carried])
    dtype = torch.promote_types(whole.B.dtype, whole.A.dtype)
    parts = svd(Product(wide(whole.B), wide(whole.A)))
    num_kept = int((parts.S > 0).sum())
    u, s, vh = leading(parts, num_kept)
    end = num_kept if carried_rank is None else min(num_kept, rank + carried_rank)
    sent = Product(u[:, :rank] * s[:rank], vh[:rank])
    left = Product(u[:, rank:end] * s[rank:end], vh[rank:end])
    return sent.to(dtype), left.to(dtype)


def refined(clients: Sequence[Factors], strength: float = 0.01) -> Product:
    """LoRA-FAIR's factors: the mean A, and the mean B corrected towards the mean of products.

    ``B + dB`` with dB the minimiser of ``||D - (B + dB) A||_F^2 + strength ||dB||_F^2`` and ``D = sum_k p_k s_k B_k
    A_k``: ``dB = sum_k p_k (B_k - B)(A_k - A) A^T (A A^T + strength I)^-1``. Only r x r systems are solved; at strength
    0 by the pseudo-inverse. The scale is in B. The paper's distance is one minus the cosine similarity, which has no
    closed form; the squared distance is a choice of this implementation.

    Raises
    ------
    RoundError, ValueError
        as ``mean_factors``; ValueError if ``strength`` is below 0.

    Paper: lora-fair, refine
    """
    if not strength >= 0:
        raise ValueError(f"strength is {strength}; it must be at least 0")
    parts, mean, own = _parts(clients)
    cross = sum(
        (part * (client.B - mean.B)) @ ((client.A - mean.A) @ mean.A.T) for part, client in zip(parts, own, strict=True)
    )  # (d_out, r)
    assert isinstance(cross, Tensor)
    values, vectors = torch.linalg.eigh(mean.A @ mean.A.T)  # (r,), (r, r)
    values = values.clamp(min=0)
    noise = torch.finfo(values.dtype).eps * mean.A.shape[1] * values.amax(0, keepdim=True)
    inverse = torch.where(values + strength > noise, 1 / (values + strength), torch.zeros_like(values))
    move = (cross @ vectors * inverse) @ vectors.T
    return Product(mean.B + move, mean.A).to(common_dtype(clients))


def scaled(clients: Sequence[Factors]) -> list[Factors]:
    """The factors of clients with equal ranks in float64, with the scale in B.

    Raises
    ------
    ValueError
        as ``lowrank.stacked``; if the ranks differ.
    """
    check_factors(clients)
    ranks = [client.A.shape[0] for client in clients]
    if len(set(ranks)) > 1:
        raise ValueError(f"ranks are {ranks}; factors of different ranks have no mean: pad them, or sum the products")
    return [Factors(wide(c.B.detach()) * c.scale, wide(c.A.detach()), weight=c.weight) for c in clients]


def _parts(clients: Sequence[Factors]) -> tuple[list[float], Product, list[Factors]]:
    """The normalised weights, the mean factors, and every client's factors with the scale in B; all in float64."""
    parts, own = normalised([client.weight for client in clients]), scaled(clients)
    # as steps from the first client, so that the mean of equal clients is bit-identical to them
    first = own[0]
    steps_b = [part * (client.B - first.B) for part, client in zip(parts, own, strict=True)]
    steps_a = [part * (client.A - first.A) for part, client in zip(parts, own, strict=True)]
    return parts, Product(first.B + torch.stack(steps_b).sum(0), first.A + torch.stack(steps_a).sum(0)), own
