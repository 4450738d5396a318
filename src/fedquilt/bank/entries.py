"""Selected entries of square matrices as flat vectors.

Entries are flat, row-major indices ``row * size + column``, (k,), sorted and distinct, so that the order of the values
depends only on which entries are selected.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grid(rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """The entries ``(len(rows) * len(columns),)`` in these rows and columns of a (size, size) matrix.

    Raises
    ------
    ValueError
        if rows or columns are not sorted, repeat, or lie outside the matrix.
    """
    for name, indices in (("rows", rows), ("columns", columns)):
        if problem := _problem(indices, size):
            raise ValueError(f"{name} {problem}")
    return (rows[:, None] * size + columns).flatten()


def gathered(matrices: Tensor, entries: Tensor) -> Tensor:
    """The values ``(..., k)`` of ``matrices`` ``(..., size, size)`` at ``entries``, differentiable in ``matrices``."""
    return matrices.flatten(-2).index_select(-1, entries)


def _problem(lines: Tensor, bound: int) -> str | None:
    """The problem with indices that must be integers in ``[0, bound)``, sorted and distinct; or None."""
    if lines.dtype != torch.int64 or lines.dim() != 1:
        return f"are {lines.dtype} of shape {tuple(lines.shape)}, not one row of int64"
    if len(lines) and not (int(lines.min()) >= 0 and int(lines.max()) < bound):
        return f"reach from {int(lines.min())} to {int(lines.max())}; they must be at least 0 and below {bound}"
    if bool((lines.diff() <= 0).any()):
        return "must be sorted and distinct"
    return None
