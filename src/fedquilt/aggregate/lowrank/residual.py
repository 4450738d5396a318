"""What the mean of factors loses against the mean of products, and two ways to give it back.

With ``B_k`` standing for ``s_k B_k`` and p for the weights' shares: ``sum_k p_k B_k A_k = B A + residual``, where
``B = sum_k p_k B_k`` and ``A = sum_k p_k A_k`` are the means and the residual is the factors' cross-covariance,
``sum_k p_k (B_k - B)(A_k - A)``. FedEx-LoRA adds it to the base; LoRA-FAIR moves B to make up for what it can.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import (
    Factors,
    Product,
    check_factors,
    common_dtype,
    leading,
    shares,
    summed,
    svd,
)
from fedquilt.core.params import wide


def mean_factors(clients: Sequence[Factors]) -> Product:
    """``B = sum_k p_k s_k B_k`` and ``A = sum_k p_k A_k``, of clients with one rank; the scale is in B.

    Raises
    ------
    RoundError, ValueError
        as ``lowrank.stacked``; ValueError also if the ranks differ.
    """
    _, mean, _ = _parts(clients)
    return mean.to(common_dtype(clients))


def residual(clients: Sequence[Factors]) -> Product:
    """Exactly what the mean of factors loses: ``sum_k p_k s_k B_k A_k - B A``, as factors of rank ``(K - 1) r``.

    ``sum_{k < K} p_k (B_k - B)(A_k - A_K)``: deviations of B add up to 0, so the last client's need not be sent, and
    small drifts are not the difference of two large products. One client, or one factor in common, gives exactly 0.

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
    """The best part of this rank of ``change`` plus what was carried over, and what is left to carry to the next round.

    Rank 0 sends nothing, which is FedIT; a rank of ``change.rank`` or more sends a change whole where nothing is
    carried, which is exact FedEx-LoRA. Both parts add up to all that was to be sent. ``carried_rank`` bounds what is
    kept, which could otherwise grow to full rank; what exceeds it is lost, smallest first.

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
    """LoRA-FAIR's factors: the mean A, and the mean B moved so that the product comes nearest to the mean of products.

    ``B + dB`` with dB the minimiser of ``||D - (B + dB) A||_F^2 + strength ||dB||_F^2`` and ``D = sum_k p_k s_k B_k
    A_k``: ``dB = sum_k p_k (B_k - B)(A_k - A) A^T (A A^T + strength I)^-1``. Only r x r systems are solved; at strength
    0 by the pseudo-inverse. The scale is in B. The paper's distance is one minus the cosine, which has no closed form;
    the squared distance is ours.

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


def _parts(clients: Sequence[Factors]) -> tuple[list[float], Product, list[Product]]:
    """The weights' shares, the mean factors, and every client's with its scale in B; all in float64."""
    parts = shares([client.weight for client in clients])
    check_factors(clients)
    ranks = [client.A.shape[0] for client in clients]
    if len(set(ranks)) > 1:
        raise ValueError(f"ranks are {ranks}; factors of unlike rank have no mean: pad them, or sum the products")
    own = [Product(wide(client.B.detach()) * client.scale, wide(client.A.detach())) for client in clients]
    # as steps from the first client: the mean of equal clients is theirs to the bit
    first = own[0]
    steps_b = [part * (client.B - first.B) for part, client in zip(parts, own, strict=True)]
    steps_a = [part * (client.A - first.A) for part, client in zip(parts, own, strict=True)]
    return parts, Product(first.B + torch.stack(steps_b).sum(0), first.A + torch.stack(steps_a).sum(0)), own
