"""Selection of the entries of the server's square matrices that each client works with.

A client of rank r works with r x r entries of matrices of R x R. ``leading`` takes the first rows and columns, so that
the entries of rank 4 are among those of rank 8. ``drawn`` draws rows and columns at random, once for each client,
because the rows of the client's A and the columns of its B adapt to them. ``strongest`` takes the entries of the
largest magnitude. The server selects, so that no indices travel.
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
    """Rows and columns of a core, sorted int64 of equal length r; rows belong to columns of B, columns to rows of A."""

    rows: Tensor
    columns: Tensor

    def entries(self, size: int) -> Tensor:
        """The flat indices (r^2,) of the entries in these rows and columns of a (size, size) matrix."""
        return grid(self.rows, self.columns, size)


def leading(rank: int, size: int) -> Lines:
    """The first ``rank`` rows and columns of matrices of this size.

    Raises
    ------
    ConfigError
        if the rank is not from 1 to ``size``.
    """
    _check(rank, size)
    return Lines(torch.arange(rank), torch.arange(rank))


def drawn(rank: int, size: int, rng: Rng) -> Lines:
    """Draw ``rank`` rows and as many columns without replacement; at full rank this is the whole matrix.

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
    """The flat indices (count,), sorted, of the ``count`` largest magnitudes of (size, size) scores.

    Among equal magnitudes the first entries are taken.

    Raises
    ------
    ConfigError
        if there are fewer entries than ``count``.

    Paper: h2tune, selection
    """
    flat = scores.detach().flatten()
    if not 1 <= count <= len(flat):
        raise ConfigError(f"{count} entries cannot be chosen of {len(flat)}; choose at least 1 and at most all")
    return flat.abs().argsort(descending=True, stable=True)[:count].sort().values


def rank_within(max_bytes: int, num_matrices: int, max_rank: int, value_bytes: int = 4, extra_bytes: int = 0) -> int:
    """The largest rank r for which ``num_matrices`` parts of r x r values fit into ``max_bytes``.

    Parameters
    ----------
    max_bytes
        Largest number of bytes of a message.
    num_matrices
        Number of matrices of which r x r values are sent.
    max_rank
        Upper bound on the result.
    value_bytes
        Bytes of one value.
    extra_bytes
        Bytes of everything else in the message.

    Raises
    ------
    ConfigError
        if rank 1 does not fit.
    """
    most = math.isqrt(max(0, max_bytes - extra_bytes) // (num_matrices * value_bytes))
    if not most:
        least = num_matrices * value_bytes + extra_bytes
        raise ConfigError(
            f"{max_bytes} bytes are too few for {num_matrices} matrices: rank 1 takes {least} bytes; allow at least "
            "that, or adapt fewer modules"
        )
    return min(most, max_rank)


def _check(rank: int, size: int) -> None:
    if not 1 <= rank <= size:
        raise ConfigError(
            f"a client's rank is {rank}; the server's matrices have {size} rows, so it must be from 1 to {size}"
        )


# As a method uses it ------------------------------------------------------------


class Selection(NamedTuple):
    """A rule that selects each client's entries, with a tree ``kept`` that the server keeps in its state for it.

    ``init(rng, bank)`` gives the initial tree, and ``after(kept, bank, number)`` the tree after ``number`` rounds.
    ``entries(kept, client, width, sites)`` are the client's ``width * width`` entries, by site.
    """

    init: Callable[[Rng, Mapping[str, Tensor]], Tree]
    entries: Callable[[Tree, ClientId, int, Sequence[str]], dict[str, Tensor]]
    after: Callable[[Tree, Mapping[str, Tensor], int], Tree] = lambda kept, bank, number: kept


def selection_of(kind: str, size: int, reselect: int = 1) -> Selection:
    """The selection named ``leading``, ``drawn`` or ``strongest``, for matrices of this size.

    The strongest entries are selected again every ``reselect`` rounds.
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
    """The norm of each entry of the bank over its slots: (R, R) by site."""
    return {site: matrices.square().sum(0).sqrt() for site, matrices in bank.items()}
