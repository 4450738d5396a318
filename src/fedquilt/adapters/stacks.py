"""Linear maps with the weights of several clients at once, each for its own run of rows.

Clients that train side by side pass through one frozen base as one batch: the rows of the first, then those of the
second, and so on, equally many of each. Their adapters are stacks of K tensors, (K, ...), and every run of rows meets
its own client's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``, (..., in) -> (..., out), with a weight (out, in), or one for each run of rows, (K, out, in).

    The bias is (out,), or (K, out).
    """
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    runs = x.reshape(len(weight), -1, x.shape[-1])  # (K, rows of a client, in)
    made = torch.bmm(runs, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), runs, weight.mT)
    return made.view(*x.shape[:-1], made.shape[-1])


def weighted(x: Tensor, factor: Tensor) -> Tensor:
    """``factor * x``, feature by feature, with a factor (d,), or one for each run of rows, (K, d)."""
    if factor.dim() == 1:
        return factor * x
    return (x.reshape(len(factor), -1, x.shape[-1]) * factor.unsqueeze(1)).view(x.shape)


def scaled(x: Tensor, scale: float | Tensor) -> Tensor:
    """``scale * x``, with one number for all rows, or one for each run of rows, (K,)."""
    if not isinstance(scale, Tensor):
        return scale * x
    return (x.view(len(scale), -1) * scale.unsqueeze(1)).view(x.shape)
