"""Factors of unlike rank averaged rank by rank (HETLoRA): cut, weigh, pad, prune.

The server's factors have the largest rank; a client of rank r holds the first r columns of B and rows of A. Scales are
in B throughout (``s_k B_k``): the server divides by the receiver's when it sends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import Factors, Product, check_factors, norm, shares
from fedquilt.core.errors import RoundError
from fedquilt.core.params import wide


def cut(product: Product, rank: int, scale: float = 1.0) -> Product:
    """What a client of this rank and scale is sent: the first columns of B, divided by its scale, and rows of A.

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
    """The same matrix with zero columns and rows up to this rank."""
    more = rank - product.rank
    if more < 0:
        raise ValueError(f"rank is {rank}; padding cannot take rank {product.rank} down")
    return Product(
        torch.cat([product.B, product.B.new_zeros(len(product.B), more)], dim=1),
        torch.cat([product.A, product.A.new_zeros(more, product.A.shape[1])]),
    )


def sparsity_weights(clients: Sequence[Sequence[Factors]]) -> list[float]:
    """HETLoRA's weights, which add up to 1: ``S_k / sum_j S_j`` with ``S_k^2 = sum over modules of ||s_k B_k A_k||^2``.

    ``clients[k]`` are the adapters of client k, as they are and not as they changed. Where all are 0, all weigh alike.

    Raises
    ------
    RoundError
        if there are no clients.

    Paper: hetlora, sparsity-weights
    """
    if not clients:
        raise RoundError("no adapters to weigh; at least one client must answer")
    sizes = [math.hypot(*(one.scale * norm(Product(one.B, one.A)) for one in modules)) for modules in clients]
    return shares(sizes) if any(sizes) else shares([1.0] * len(sizes))


def segment_mean(base: Product, clients: Sequence[Factors], normalize: Literal["all", "segment"] = "all") -> Product:
    """The server's factors after a round with clients of unlike rank, in the shapes and dtype of ``base``.

    Of column i of B and row i of A, ``sum_{k: r_k > i} w_k (.)``, over ``sum_k w_k`` (``"all"``, the paper's: clients
    of lower rank count as zeros, so the high ranks shrink) or over ``sum_{k: r_k > i} w_k`` (``"segment"``). What no
    client held stays as it is in ``base``: with zeros in both factors, no gradient would ever reach it again.

    Raises
    ------
    RoundError, ValueError
        as ``lowrank.stacked``; ValueError if a client's rank is above the base's, or ``normalize`` is unknown.

    Paper: hetlora, padded-mean; rbla, segment-mean
    """
    if normalize not in ("all", "segment"):
        raise ValueError(f"normalize is '{normalize}'; it must be 'all' or 'segment'")
    parts = shares([client.weight for client in clients])
    check_factors([Factors(*base), *clients])
    ranks = [client.A.shape[0] for client in clients]
    if max(ranks) > base.rank:
        raise ValueError(f"ranks are {ranks}; the server's is {base.rank}, and none may be above it")
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
    """``||B[:, rank:]||_F ||A[rank:]||_F``, a scalar that gradients flow through: what pruning to ``rank`` would cut.

    The client's loss adds lambda times this, summed over modules; 0 where nothing is beyond the rank.

    Paper: hetlora, tail
    """
    beyond: Tensor = product.B[:, rank:].norm() * product.A[rank:].norm()
    return beyond


def pruned_rank(rank: int, before: float, after: float, *, gamma: float = 0.99, min_rank: int = 1) -> int:
    """A client's rank after a round: ``max(min_rank, floor(gamma rank))`` if its tail shrank, else what it was.

    ``before`` and ``after`` are ``tail`` at ``floor(gamma rank)`` of what was received and of what was trained, summed
    over modules. Never above ``rank``.

    Paper: hetlora, prune
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is {gamma}; it must be above 0 and at most 1")
    smaller = max(min_rank, math.floor(gamma * rank + 1e-9))
    return min(rank, smaller) if after < before else rank
