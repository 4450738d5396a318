"""Which entries of the server's square matrices a client works with, and how many it can afford.

A client of rank r has r x r of the entries of matrices of R x R. ``leading`` needs no draw: the client of rank 8 has
what the one of rank 4 has, and more. ``drawn`` is a draw, once for each client and for good, because the rows of the
client's A and the columns of its B learn to stand for the rows and columns that it got. ``strongest`` are the entries
that have grown most, wherever they are. The server chooses, so that no index travels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.bank.entries import grid
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Params, Tree


class Lines(NamedTuple):
    """Rows and columns, sorted int64 of equal length r. Rows stand for columns of B, columns for rows of A."""

    rows: Tensor
    columns: Tensor

    def entries(self, size: int) -> Tensor:
        """The numbers of the entries in these rows and columns of a (size, size) matrix, (r^2,)."""
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


# As a method uses it ------------------------------------------------------------


class Selection(NamedTuple):
    """Which entries of the bank each client works with, and what the server keeps in its state to know it.

    ``init(rng, bank)`` gives what is kept at first, a tree; ``after(kept, bank, number)`` what is kept once ``number``
    rounds are over. ``entries(kept, client, width, sites)`` are the client's ``width * width`` entries, by site.
    """

    init: Callable[[Rng, Mapping[str, Tensor]], Tree]
    entries: Callable[[Tree, ClientId, int, Sequence[str]], dict[str, Tensor]]
    after: Callable[[Tree, Mapping[str, Tensor], int], Tree] = lambda kept, bank, number: kept


def selection_of(kind: str, size: int, reselect: int = 1) -> Selection:
    """The selection named ``leading``, ``drawn`` or ``strongest``, of matrices of this size.

    The strongest entries are chosen anew every ``reselect`` rounds.
    """

    def by_lines(lines: Callable[[Tree, ClientId, int], Lines]) -> Callable[..., dict[str, Tensor]]:
        def entries(kept: Tree, client: ClientId, width: int, sites: Sequence[str]) -> dict[str, Tensor]:
            return dict.fromkeys(sites, lines(kept, client, width).entries(size))

        return entries

    def grown(kept: Tree, client: ClientId, width: int, sites: Sequence[str]) -> dict[str, Tensor]:
        return {site: strongest(kept[site], width * width) for site in sites}

    kinds = {
        "leading": Selection(lambda rng, bank: None, by_lines(lambda kept, client, width: leading(width, size))),
        "drawn": Selection(
            lambda rng, bank: rng.child("draws").integer(),
            by_lines(lambda kept, client, width: drawn(width, size, Rng(kept).child(client))),
        ),
        "strongest": Selection(
            lambda rng, bank: _magnitudes(bank),
            grown,
            lambda kept, bank, number: kept if number % reselect else _magnitudes(bank),
        ),
    }
    return kinds[kind]


def _magnitudes(bank: Mapping[str, Tensor]) -> Params:
    """How large each entry of the bank is, over its slots: (R, R) by site."""
    return {site: matrices.square().sum(0).sqrt() for site, matrices in bank.items()}
