"""A query: what the clients of a run are asked about new rows, after the run and without changing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fedquilt.core.method import Exchange
from fedquilt.core.types import Memory
from fedquilt.core.worker import Worker

KEY = "query"
"""The setting of every order of a query that holds its key, a hexadecimal number, which tells queries apart."""


class Query(NamedTuple):
    """A client's side of a query.

    What the client remembers of the run is the same in all exchanges; what one of them adds is forgotten after the
    last.

    Attributes
    ----------
    exchanges
        The exchanges, in order.
    client
        The worker that their ``work`` is called with: the run's, with the rows of the query.
    rows
        ``rows(memory)`` gives a digest of each row that the last exchange answers about, in their order, empty for one
        that the client does not hold.
    noise, delta
        The noise of what an answer tells of a row, as a multiple of its bound, 0 for none; and the delta of its
        epsilon.
    """

    exchanges: tuple[Exchange, ...]
    client: Worker
    rows: Callable[[Memory], Sequence[str]]
    noise: float
    delta: float
