"""HETLoRA's average of factors with different ranks: truncation, weights, padding and rank pruning.

The server's factors have the largest rank; a client of rank r holds the first r columns of B and rows of A. B always
includes the scale (``s_k B_k``); the server divides by the receiver's scale when it sends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import check_factors, norm, normalised
from fedquilt.core.errors import RoundError
from fedquilt.core.factors import Factors, Product
from fedquilt.core.params import wide


def cut(product: Product, rank: int, scale: float = 1.0) -> Product:
    """The factors sent to a client of this rank and scale: the first columns of B over its scale, and rows of A.

    Raises
    ------
    ValueError
        if the rank is not from 1 to the product's, or the scale is not above 0.

    Paper: hetlora, cut
    """
    if not 1 <= rank <= product.rank:
        raise ValueError(f"rank is {rank}; it must be from 1 to {product.rank}")
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be above 0")
    return Product(product.B[:, :rank] / scale, product.A[:rank])


def padded(product: Product, rank: int) -> Product:
    """The product padded with zero columns and rows to this rank."""
    more = rank - product.rank
    if more < 0:
        raise ValueError(f"rank is {rank}; padding cannot reduce rank {product.rank}")
    return Product(
        torch.cat([product.B, product.B.new_zeros(len(product.B), more)], dim=1),
        torch.cat([product.A, product.A.new_zeros(more, product.A.shape[1])]),
    )


def sparsity_weights(clients: Sequence[Sequence[Factors]]) -> list[float]:
    """HETLoRA's weights, which sum to 1: ``S_k / sum_j S_j`` with ``S_k^2 = sum over modules of ||s_k B_k A_k||^2``.

    ``clients[k]`` are the adapters of client k (not their changes). If all are 0, all weights are equal.

    Raises
    ------
    RoundError
        if there are no clients.

    Paper: hetlora, sparsity-weights
    """
    if not clients:
        raise RoundError("no adapters to weigh; at least one client must answer")
    sizes = [math.hypot(*(one.scale * norm(Product(one.B, one.A)) for one in modules)) for modules in clients]
    return normalised(sizes) if any(sizes) else normalised([1.0] * len(sizes))


def segment_mean(base: Product, clients: Sequence[Factors], normalize: Literal["all", "segment"] = "all") -> Product:
    """The server's factors after a round with clients of different ranks, in the shapes and dtype of ``base``.

    Column i of B and row i of A become ``sum_{k: r_k > i} w_k (.)``, divided by ``sum_k w_k`` (``"all"``, as in the
    paper: clients of lower rank count as zeros, so that high ranks shrink) or by ``sum_{k: r_k > i} w_k``
    (``"segment"``). Ranks that no client holds are unchanged: if both factors were 0, their gradients would stay 0
    forever.

    Raises
    ------
    RoundError, ValueError
        as ``lowrank.stacked``; ValueError if a client's rank is above the base's, or ``normalize`` is unknown.

    Paper: hetlora, padded-mean; rbla, segment-mean
    """
    if normalize not in ("all", "segment"):
        raise ValueError(f"normalize is '{normalize}'; it must be 'all' or 'segment'")
    parts = normalised([client.weight for client in clients])
    check_factors([Factors(*base), *clients])
    ranks = [client.A.shape[0] for client in clients]
    if max(ranks) > base.rank:
        raise ValueError(f"ranks are {ranks}; they must be at most the server's {base.rank}")
    reach = [math.fsum(part for part, rank in zip(parts, ranks, strict=True) if rank > i) for i in range(base.rank)]
    held = wide(base.B).new_tensor(reach)  # (r,): the share of the clients that hold rank i
    own = [padded(Product(wide(c.B.detach()) * c.scale, wide(c.A.detach())), base.rank) for c in clients]
    b = torch.stack([part * client.B for part, client in zip(parts, own, strict=True)]).sum(0)
    a = torch.stack([part * client.A for part, client in zip(parts, own, strict=True)]).sum(0)
    if normalize == "segment":
        over = torch.where(held > 0, held, 1.0)
        b, a = b / over, a / over[:, None]
    return Product(
        torch.where(held > 0, b, wide(base.B)).to(base.B.dtype),
        torch.where(held[:, None] > 0, a, wide(base.A)).to(base.A.dtype),
    )


def tail(product: Product, rank: int) -> Tensor:
    """The size of the part that pruning to ``rank`` would remove: ``||B[:, rank:]||_F ||A[rank:]||_F``.

    A scalar that gradients flow through; 0 if there is no rank beyond. The client's loss includes lambda times its sum
    over modules.

    Paper: hetlora, tail
    """
    beyond: Tensor = product.B[:, rank:].norm() * product.A[rank:].norm()
    return beyond


def pruned_rank(rank: int, before: float, after: float, *, gamma: float = 0.99, min_rank: int = 1) -> int:
    """A client's rank after a round: ``max(min_rank, floor(gamma rank))`` if its tail shrank, else unchanged.

    Parameters
    ----------
    rank
        The client's rank in the round; the result is never above it.
    before, after
        The sums over modules of ``tail`` at ``floor(gamma rank)``, before and after training.
    gamma
        The share of the rank that pruning keeps, above 0 and at most 1.
    min_rank
        The lowest rank that pruning leads to.

    Paper: hetlora, prune
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is {gamma}; it must be above 0 and at most 1")
    smaller = max(min_rank, math.floor(gamma * rank + 1e-9))
    return min(rank, smaller) if after < before else rank
