"""Who has which rows, for any number of clients: a few arrays as long as the data, read client by client."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from fedquilt.core.types import ClientId


@dataclass(frozen=True)
class ClientRows:
    """The row numbers of one client, each array ascending; the three are disjoint."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Parts(Sequence[np.ndarray]):
    """The row numbers of every client, each array ascending.

    Attributes
    ----------
    rows
        The rows of all clients, one client after another.
    ends
        Where the rows of each client end in ``rows``.
    """

    def __init__(self, rows: np.ndarray, ends: np.ndarray) -> None:
        self.rows, self.ends = rows, ends

    @classmethod
    def of_owners(cls, owners: np.ndarray, num_clients: int) -> Parts:
        """The parts, from the client of every row."""
        return cls(np.argsort(owners, kind="stable"), np.cumsum(np.bincount(owners, minlength=num_clients)))

    @classmethod
    def of(cls, parts: Sequence[np.ndarray]) -> Parts:
        """The parts, from the rows of every client."""
        if isinstance(parts, Parts):
            return parts
        rows = np.concatenate([np.sort(part) for part in parts]) if parts else np.empty(0, dtype=np.int64)
        return cls(rows, np.cumsum([len(part) for part in parts], dtype=np.int64))

    @property
    def sizes(self) -> np.ndarray:
        """The number of rows of every client."""
        return np.diff(self.ends, prepend=0)

    def without(self, rows: np.ndarray) -> Parts:
        """The parts without these rows."""
        kept = ~np.isin(self.rows, rows)
        return Parts(self.rows[kept], np.concatenate([[0], np.cumsum(kept)])[self.ends])

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, client: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, client: slice) -> tuple[np.ndarray, ...]: ...

    def __getitem__(self, client: Any) -> Any:
        if isinstance(client, slice):
            return tuple(self[one] for one in range(*client.indices(len(self))))
        place = range(len(self))[client]
        return self.rows[self.ends[place - 1] if place else 0 : self.ends[place]]


TRAIN, VALIDATION, TEST = 0, 1, 2


class Splits(Mapping[ClientId, ClientRows]):
    """The training, validation and test rows of each client, by its number.

    Parameters
    ----------
    ids
        The clients' numbers, ascending.
    parts
        All rows of each of them.
    kinds
        What each row of ``parts.rows`` is for; all train if left out.
    """

    def __init__(self, ids: Sequence[ClientId], parts: Sequence[np.ndarray], kinds: np.ndarray | None = None) -> None:
        self.ids, self.parts = np.asarray(ids, dtype=np.int64), Parts.of(parts)
        self._kinds = np.zeros(len(self.parts.rows), dtype=np.int8) if kinds is None else kinds
        if np.any(np.diff(self.ids) <= 0) or len(self.ids) != len(self.parts):
            raise ValueError("the clients of a split have ascending numbers, one for each part")

    def numbered(self, ids: Sequence[ClientId]) -> Splits:
        """The same splits of clients with other numbers: client ``i`` becomes ``ids[i]``."""
        return Splits([ids[number] for number in self.ids.tolist()], self.parts, self._kinds)

    def num_train(self, ids: range) -> tuple[Collection[ClientId], list[int]]:
        """Those of the clients ``ids`` that are in the split, and the number of training rows of each of ``ids``."""
        counts = np.diff(np.concatenate([[0], np.cumsum(self._kinds == TRAIN)])[self.parts.ends], prepend=0)
        first, last = np.searchsorted(self.ids, [ids.start, ids.stop])
        found, numbers = self.ids[first:last], np.zeros(len(ids), dtype=np.int64)
        numbers[found - ids.start] = counts[first:last]
        return ids if len(found) == len(ids) else dict.fromkeys(found.tolist()), numbers.tolist()

    def train_rows(self) -> np.ndarray:
        """The training rows of all clients, ascending."""
        return np.sort(self.parts.rows[self._kinds == TRAIN])

    def __getitem__(self, client: ClientId) -> ClientRows:
        place = int(np.searchsorted(self.ids, client))
        if place == len(self.ids) or self.ids[place] != client:
            raise KeyError(client)
        rows = self.parts[place]
        end = self.parts.ends[place]
        kinds = self._kinds[end - len(rows) : end]
        return ClientRows(rows[kinds == TRAIN], rows[kinds == VALIDATION], rows[kinds == TEST])

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self.ids.tolist())

    def __len__(self) -> int:
        return len(self.ids)
