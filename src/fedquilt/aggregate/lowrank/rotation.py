"""Factors in common coordinates: rotation to the server's factors, and two means that clients' rotations cannot change.

For every orthogonal R (r, r), ``(B R)(R^T A)`` is the same matrix as ``B A``. Two clients that learned the same change
may therefore hold it in different factors, whose mean cancels what they learned. FedRot-LoRA rotates every client's
factors to the server's before it averages them. FLoRG averages a Gram matrix, which does not depend on R, factors the
mean, and rotates the result to the server's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedquilt.aggregate.lowrank.kernel import common_dtype, leading, normalised, svd
from fedquilt.aggregate.lowrank.residual import mean_factors, scaled
from fedquilt.core.factors import Factors, Product


def rotation(moving: Product | Factors, target: Product | Factors) -> Tensor:
    """The orthogonal R, (r, r), that minimises ``||B R - B_0||_F^2 + ||R^T A - A_0||_F^2`` (orthogonal Procrustes).

    R is the polar factor ``U V^T`` of ``B^T B_0 + A A_0^T = U S V^T``; it may include a reflection. In directions whose
    singular value is 0, where every rotation is as near to the target, R is as near to the identity as possible, so
    that it does not depend on the machine.

    Paper: fedrot-lora, align; florg, align
    """
    u, s, vh = torch.linalg.svd(moving.B.T @ target.B + moving.A @ target.A.T)  # (r, r), (r,), (r, r)
    size = moving.B.norm() * target.B.norm() + moving.A.norm() * target.A.norm()
    num = int((s > torch.finfo(s.dtype).eps * max(len(moving.B), moving.A.shape[1]) * size).sum())
    left, _, right = torch.linalg.svd(u[:, num:].T @ vh[num:].T)  # of the directions that are left over
    turn: Tensor = u[:, :num] @ vh[:num] + u[:, num:] @ left @ right @ vh[num:]
    return turn


def rotated_mean(server: Factors, clients: Sequence[Factors]) -> Product:
    """FedRot-LoRA's factors: ``B = sum_k p_k s_k B_k R_k`` and ``A = sum_k p_k R_k^T A_k``; the scale is in B.

    R_k is the rotation of the client's factors to the server's. It leaves every client's product as it is; only the
    coordinates in which the factors are averaged change.

    Raises
    ------
    RoundError, ValueError
        as ``mean_factors``; ValueError also if the server's rank is another.

    Paper: fedrot-lora, mean
    """
    target, *own = scaled([server, *clients])
    aligned = [_turned(client, rotation(client, target)) for client in own]
    return mean_factors(aligned).to(common_dtype(clients))


def gram_mean(server: Factors, clients: Sequence[Factors]) -> Product:
    """FLoRG's factors: of the clients' mean Gram matrix, rotated to the server's; the scale is in B.

    A client's pair is one low-rank matrix ``Z_k = [s_k B_k^T, A_k]``, (r, d_out + d_in). Its Gram matrix ``Z_k^T Z_k``
    holds the product ``s_k B_k A_k`` as a block, so that the mean Gram matrix holds the exact mean of the products. The
    result is ``Z`` of rank r with ``Z^T Z`` nearest to the mean, in the coordinates nearest to the server's Z. No Gram
    matrix is formed: the singular vectors of the stacked ``sqrt(p_k) Z_k`` are the eigenvectors of the mean.

    Raises
    ------
    RoundError, ValueError
        as ``rotated_mean``.

    Paper: florg, gram
    """
    target, *own = scaled([server, *clients])
    parts = normalised([client.weight for client in own])
    d_out, rank = target.B.shape
    stack = torch.cat([math.sqrt(part) * torch.cat([c.B, c.A.T]) for part, c in zip(parts, own, strict=True)], dim=1)
    found = leading(svd(Product(stack, torch.eye(stack.shape[1]).to(stack)), rank), rank)
    columns = found.U * found.S  # Z^T, (d_out + d_in, r)
    made = Factors(columns[:d_out], columns[d_out:].T)
    turned = _turned(made, rotation(made, target))
    return Product(turned.B, turned.A).to(common_dtype(clients))


def _turned(pair: Factors, turn: Tensor) -> Factors:
    """The same product in other coordinates: ``B R`` and ``R^T A``."""
    return pair._replace(B=pair.B @ turn, A=turn.T @ pair.A)
