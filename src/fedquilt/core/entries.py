"""Some entries of square matrices: taken out as values in a row, and put back where they were.

Entries are flat, row-major indices ``row * size + column``, sorted and without repetition: ``(k,)``, or ``(layers, k)``
where each of the leading matrices has entries of its own. Sorted, because what a value means must depend on which entry
it is of and never on how it was found.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grid(rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """The entries, ``(len(rows) * len(columns),)``, where these rows and columns of a (size, size) matrix meet.

    Raises
    ------
    ValueError
        if rows or columns are not sorted, repeat, or lie outside the matrix.
    """
    for name, places in (("rows", rows), ("columns", columns)):
        if problem := entries_problem(places, size):
            raise ValueError(f"{name} {problem}")
    return (rows[:, None] * size + columns).flatten()


def gathered(matrices: Tensor, entries: Tensor) -> Tensor:
    """The values ``(..., k)`` of ``matrices`` ``(..., size, size)`` at ``entries``; gradients go through."""
    flat = matrices.flatten(-2)  # (..., size^2)
    return flat.index_select(-1, entries) if entries.dim() == 1 else flat.gather(-1, entries)


def scattered(values: Tensor, entries: Tensor, size: int) -> Tensor:
    """Matrices ``(..., size, size)`` that hold ``values`` ``(..., k)`` at ``entries`` and 0 elsewhere."""
    flat = values.new_zeros(*values.shape[:-1], size * size)
    return flat.scatter(-1, entries.expand(values.shape), values).unflatten(-1, (size, size))


def square(values: Tensor, rank: int) -> Tensor:
    """Values ``(..., k)`` as matrices ``(..., rank, rank)``, row by row; where ``k < rank^2`` the rest is 0.

    The values of a ``grid`` of as many rows and columns are then the submatrix in which they meet.

    Raises
    ------
    ValueError
        if there are more values than places.
    """
    missing = rank * rank - values.shape[-1]
    if missing < 0:
        raise ValueError(f"{values.shape[-1]} values do not fit into a matrix of {rank} rows and columns")
    return F.pad(values, (0, missing)).unflatten(-1, (rank, rank))


def entries_problem(entries: Tensor, bound: int) -> str | None:
    """What is wrong with indices that must be whole numbers in ``[0, bound)``, each row sorted, none twice; or None."""
    if entries.dtype not in (torch.int16, torch.int32, torch.int64) or not 1 <= entries.dim() <= 2:
        return f"are {entries.dtype} of shape {tuple(entries.shape)}, not a row of whole numbers for each layer or all"
    if entries.numel() and not (int(entries.min()) >= 0 and int(entries.max()) < bound):
        return f"reach from {int(entries.min())} to {int(entries.max())}; they must be at least 0 and below {bound}"
    if bool((entries.diff(dim=-1) <= 0).any()):
        return "must be sorted, none twice"
    return None
