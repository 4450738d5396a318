"""Which entries of the server's square matrices a client works with, and how many it can afford.

A client of rank r has an r x r part of matrices of R x R. ``leading`` needs no draw and no bytes: the client of rank 8
has what the one of rank 4 has, and more. ``drawn`` is the server's draw, once for each client and for good, because the
rows of the client's A and the columns of its B learn to stand for the rows and columns that it got. ``strongest`` and
``strongest_grid`` are the client's own choice, by scores, and travel with its values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.core.entries import grid
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng


class Lines(NamedTuple):
    """Rows and columns, sorted int64 of equal length r. Rows stand for columns of B, columns for rows of A."""

    rows: Tensor
    columns: Tensor

    def entries(self, size: int) -> Tensor:
        return grid(self.rows, self.columns, size)


def leading(rank: int, size: int) -> Lines:
    """The first ``rank`` rows and columns of matrices of this size: nested, and the same for all clients of a rank.

    Raises
    ------
    ConfigError
        if the rank is not from 1 to ``size``.
    """
    _check(rank, size)
    return Lines(torch.arange(rank), torch.arange(rank))


def drawn(rank: int, size: int, rng: Rng) -> Lines:
    """``rank`` rows and as many columns, drawn without replacement; at full rank all, which is the whole matrix.

    Raises
    ------
    ConfigError
        if the rank is not from 1 to ``size``.
    """
    _check(rank, size)

    def some(name: str) -> Tensor:
        return torch.randperm(size, generator=rng.child(name).torch())[:rank].sort().values

    return Lines(some("rows"), some("columns"))


def strongest(scores: Tensor, count: int) -> Tensor:
    """The entries, ``(..., count)`` and sorted, of the ``count`` largest magnitudes of ``(..., size, size)`` scores.

    Of equals those that come first. What matters is which entries are chosen: how their scores rank them does not.

    Raises
    ------
    ConfigError
        if there are not so many entries.

    Paper: h2tune, selection
    """
    flat = scores.detach().flatten(-2)
    if not 1 <= count <= flat.shape[-1]:
        raise ConfigError(f"{count} entries cannot be chosen of {flat.shape[-1]}; choose at least 1 and at most all")
    order = flat.abs().argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values


def strongest_grid(scores: Tensor, rank: int) -> Lines:
    """The ``rank`` rows and the ``rank`` columns of (size, size) scores with the largest sums of magnitudes.

    Raises
    ------
    ConfigError
        if the rank is not from 1 to ``size``.
    """
    _check(rank, len(scores))
    sums = scores.detach().abs().sum(1), scores.detach().abs().sum(0)  # of rows, of columns
    rows, columns = (total.argsort(descending=True, stable=True)[:rank].sort().values for total in sums)
    return Lines(rows, columns)


def saliency(scores: Tensor, values: Tensor, gradients: Tensor, decay: float = 0.9) -> Tensor:
    """How much the loss hangs on each entry, as a running mean: ``decay scores + (1 - decay) |values gradients|``."""
    return decay * scores + (1 - decay) * (values * gradients).detach().abs()


def rank_within(max_bytes: int, num_matrices: int, max_rank: int, value_bytes: int = 4, extra_bytes: int = 0) -> int:
    """The largest rank whose ``num_matrices`` parts of r x r values, and what else is sent, stay within ``max_bytes``.

    Raises
    ------
    ConfigError
        if not even rank 1 does.
    """
    fitting = [r for r in range(1, max_rank + 1) if num_matrices * r * r * value_bytes + extra_bytes <= max_bytes]
    if not fitting:
        least = num_matrices * value_bytes + extra_bytes
        raise ConfigError(
            f"{max_bytes} bytes are too few for {num_matrices} matrices: rank 1 takes {least}; allow at least that, or "
            "adapt fewer modules"
        )
    return fitting[-1]


def _check(rank: int, size: int) -> None:
    if not 1 <= rank <= size:
        raise ConfigError(
            f"a client's rank is {rank}; the server's matrices have {size} rows, so it must be from 1 to {size}"
        )
