"""Which entries of the server's square matrices a client works with, and how many it can afford.

A client of rank r has r x r of the entries of matrices of R x R. ``leading`` needs no draw: the client of rank 8 has
what the one of rank 4 has, and more. ``drawn`` is a draw, once for each client and for good, because the rows of the
client's A and the columns of its B learn to stand for the rows and columns that it got. ``strongest`` are the entries
that have grown most, wherever they are. The server chooses, so that no index travels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.bank.entries import grid
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
    """The entries, (count,) and sorted, of the ``count`` largest magnitudes of (size, size) scores.

    Of equals those that come first. What matters is which entries are chosen: how their scores rank them does not.

    Raises
    ------
    ConfigError
        if there are not so many entries.

    Paper: h2tune, selection
    """
    flat = scores.detach().flatten()
    if not 1 <= count <= len(flat):
        raise ConfigError(f"{count} entries cannot be chosen of {len(flat)}; choose at least 1 and at most all")
    return flat.abs().argsort(descending=True, stable=True)[:count].sort().values


def rank_within(max_bytes: int, num_matrices: int, max_rank: int, value_bytes: int = 4, extra_bytes: int = 0) -> int:
    """The largest rank whose ``num_matrices`` parts of r x r values, and what else is sent, stay within ``max_bytes``.

    Raises
    ------
    ConfigError
        if not even rank 1 does.
    """
    most = math.isqrt(max(0, max_bytes - extra_bytes) // (num_matrices * value_bytes))
    if not most:
        least = num_matrices * value_bytes + extra_bytes
        raise ConfigError(
            f"{max_bytes} bytes are too few for {num_matrices} matrices: rank 1 takes {least}; allow at least that, or "
            "adapt fewer modules"
        )
    return min(most, max_rank)


def _check(rank: int, size: int) -> None:
    if not 1 <= rank <= size:
        raise ConfigError(
            f"a client's rank is {rank}; the server's matrices have {size} rows, so it must be from 1 to {size}"
        )
