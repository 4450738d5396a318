"""Some entries of square matrices, taken out as values in a row.

Entries are flat, row-major indices ``row * size + column``, (k,), sorted and without repetition. Sorted, because what a
value means must depend on which entry it is of and never on how it was found.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grid(rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """The entries, ``(len(rows) * len(columns),)``, where these rows and columns of a (size, size) matrix meet.

    Raises
    ------
    ValueError
        if rows or columns are not sorted, repeat, or lie outside the matrix.
    """
    for name, places in (("rows", rows), ("columns", columns)):
        if problem := _problem(places, size):
            raise ValueError(f"{name} {problem}")
    return (rows[:, None] * size + columns).flatten()


def gathered(matrices: Tensor, entries: Tensor) -> Tensor:
    """The values ``(..., k)`` of ``matrices`` ``(..., size, size)`` at ``entries``; gradients go through."""
    return matrices.flatten(-2).index_select(-1, entries)


def _problem(lines: Tensor, bound: int) -> str | None:
    """What is wrong with indices that must be whole numbers in ``[0, bound)``, sorted, none twice; or None."""
    if lines.dtype != torch.int64 or lines.dim() != 1:
        return f"are {lines.dtype} of shape {tuple(lines.shape)}, not one row of int64"
    if len(lines) and not (int(lines.min()) >= 0 and int(lines.max()) < bound):
        return f"reach from {int(lines.min())} to {int(lines.max())}; they must be at least 0 and below {bound}"
    if bool((lines.diff() <= 0).any()):
        return "must be sorted, none twice"
    return None
