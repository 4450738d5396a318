"""A source as named columns, before any of them is interpreted as inputs or labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fedquilt.core.errors import DataError


class Location(NamedTuple):
    """The location of a row: a file, the unit ``"line"`` or ``"row"``, and its number from 1; a header line counts."""

    file: str
    unit: str
    number: int


class Trouble(NamedTuple):
    """A problem with one row, and the location of the row."""

    what: str
    location: Location


@dataclass(frozen=True)
class Origin:
    """The location of each row of a table: ``origin.location(row)``.

    ``files`` are pairs of a file and its unit, ``"line"`` or ``"row"``; ``file`` (n,) holds the index into ``files``,
    ``number`` (n,) the row's number in its file, from 1.
    """

    files: tuple[tuple[str, str], ...]
    file: np.ndarray
    number: np.ndarray

    def location(self, row: int) -> Location:
        """The location of row number ``row``, from 0."""
        file, unit = self.files[self.file[row]]
        return Location(file, unit, int(self.number[row]))

    def rows(self, indices: np.ndarray) -> Origin:
        """The locations of the rows numbered ``indices``, in that order."""
        return Origin(self.files, self.file[indices], self.number[indices])


def of_one_file(file: str, unit: str, numbers: Sequence[int] | np.ndarray) -> Origin:
    """The locations of rows of one file; ``numbers`` are their numbers in it."""
    return Origin(((file, unit),), np.zeros(len(numbers), dtype=np.int32), np.asarray(numbers, dtype=np.int64))


def joined_origins(parts: Sequence[Origin]) -> Origin:
    """The locations of the rows of all parts, one part after another."""
    starts = np.cumsum([0, *(len(part.files) for part in parts)])
    return Origin(
        tuple(file for part in parts for file in part.files),
        np.concatenate([part.file + start for part, start in zip(parts, starts[:-1], strict=True)]).astype(np.int32),
        np.concatenate([part.number for part in parts]),
    )


@dataclass(frozen=True)
class Raw:
    """Named columns of one length, read on demand.

    Attributes
    ----------
    names
        The column names.
    num_rows
        The number of rows that could be read.
    read
        ``read(name)`` gives a column as a list or a numpy array; nothing is decoded before.
    origin
        The location of each row.
    class_names
        For label columns of integers: the class names, if the source declares them.
    troubles
        Rows that could not be read; they are not counted in ``num_rows``.
    """

    names: tuple[str, ...]
    num_rows: int
    read: Callable[[str], Any]
    origin: Origin
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    troubles: tuple[Trouble, ...] = ()


def from_columns(
    columns: Mapping[str, Sequence[Any]],
    file: str = "the data",
    unit: str = "row",
    numbers: Sequence[int] | None = None,
    troubles: Sequence[Trouble] = (),
) -> Raw:
    """Columns in memory as a ``Raw``.

    Parameters
    ----------
    columns
        The columns by name, all of one length.
    file, unit, numbers
        The locations of the rows: the file, ``"line"`` or ``"row"``, and the row numbers in the file (from 1 if None).
    troubles
        Rows of the file that could not be read.
    """
    length = len(next(iter(columns.values()))) if columns else 0
    origin = of_one_file(file, unit, np.arange(1, length + 1) if numbers is None else numbers)
    return Raw(tuple(columns), length, columns.__getitem__, origin, troubles=tuple(troubles))


def joined(parts: Sequence[Raw], source: str) -> Raw:
    """The rows of all parts, one part after another.

    Raises
    ------
    DataError
        if the parts differ in their columns or in the numbering of their classes.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if set(part.names) != set(first.names):
            odd = ", ".join(sorted(set(part.names) ^ set(first.names)))
            raise DataError(
                f"data.source = '{source}': its files have different columns ({odd}); name one file instead"
            )
        if dict(part.class_names) != dict(first.class_names):
            raise DataError(
                f"data.source = '{source}': its files number the classes differently; name one file instead"
            )

    def read(name: str) -> Sequence[Any] | np.ndarray:
        columns = [part.read(name) for part in parts]
        if all(isinstance(column, np.ndarray) for column in columns):
            if len({column.shape[1:] for column in columns}) == 1:
                return np.concatenate(columns)
            columns = [list(column) for column in columns]  # pictures of different sizes
        return [value for column in columns for value in column]

    return Raw(
        first.names,
        sum(part.num_rows for part in parts),
        read,
        joined_origins([part.origin for part in parts]),
        first.class_names,
        tuple(trouble for part in parts for trouble in part.troubles),
    )
