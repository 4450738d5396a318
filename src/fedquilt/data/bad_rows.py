"""Rows of a source that cannot be used: collected, then reported together with file, line and count."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.data.readers.raw_columns import Location, Origin, Trouble

_FEW = 5  # rows that are listed for each problem

OnMissing = Literal["error", "drop"]
"""What happens to rows that lack something: an error that lists them, or they are left out."""


class Dropped(NamedTuple):
    """Rows that were left out: what they lack, and where they stand."""

    what: str
    locations: tuple[Location, ...]


class Troubles:
    """The rows of a source that cannot be used, grouped by problem.

    With ``on_missing = "drop"`` rows that lack something are collected apart from the others: they are left out.
    """

    def __init__(self, origin: Origin, found: Sequence[Trouble] = (), on_missing: OnMissing = "error") -> None:
        self._origin = origin
        self.drops = on_missing == "drop"
        self._missing: dict[str, list[int]] = {}
        self._found: dict[str, dict[Location, str]] = {}
        for what, location in found:
            self._found.setdefault(what, {}).setdefault(location, "")

    def add(self, what: str, row: int, value: object = None, *, show: bool = False, missing: bool = False) -> None:
        """Note that row number ``row`` cannot be used.

        Parameters
        ----------
        what, row
            The problem, and the number of the row.
        value, show
            With ``show`` the report quotes the first such ``value``.
        missing
            The row lacks something, so that it may be left out.
        """
        if missing:
            self._missing.setdefault(what, []).append(row)
        if missing and self.drops:
            return
        example = f" ({short(value)})" if show else ""
        self._found.setdefault(what, {}).setdefault(self._origin.location(row), example)

    def refuse(self, source: str) -> None:
        """Raise DataError if any row cannot be used.

        Raises
        ------
        DataError
            lists every problem, the number of rows that have it, and where they stand; ``source`` names the data.
        """
        if not self._found:
            return
        locations = {location for rows in self._found.values() for location in rows}
        lines = [
            f"  {what}{next(iter(rows.values()))}: {_rows(len(rows))}: {listed(list(rows))}"
            for what, rows in self._found.items()
        ]
        them = "it" if len(locations) == 1 else "them"
        missing = {self._origin.location(row) for rows in self._missing.values() for row in rows}
        otherwise = f", or leave {them} out with data.on_missing = 'drop'" if locations <= missing else ""
        raise DataError(
            f"{source}: {_rows(len(locations))} cannot be used; repair or remove {them}{otherwise}\n" + "\n".join(lines)
        )

    def kept(self, num_rows: int, source: str) -> tuple[np.ndarray, tuple[Dropped, ...]]:
        """The numbers of the rows that lack nothing, and the others by what they lack.

        Raises
        ------
        DataError
            if no row is left; ``source`` names the data.
        """
        if not self.drops or not self._missing:
            return np.arange(num_rows), ()
        rows = np.setdiff1d(np.arange(num_rows), [row for rows in self._missing.values() for row in rows])
        dropped = tuple(Dropped(what, tuple(map(self._origin.location, rows))) for what, rows in self._missing.items())
        if not len(rows):
            raise DataError(f"{source}: data.on_missing = 'drop' leaves no row: {described(dropped)}")
        return rows, dropped


def described(dropped: Sequence[Dropped]) -> str:
    """How many rows were left out for each reason, and where they stand."""
    return "; ".join(f"{what}: {_rows(len(where))} ({listed(where)})" for what, where in dropped)


def listed(locations: Sequence[Location]) -> str:
    """List rows by file: ``"rows.csv, lines 4, 7 and 353"``; of many rows the first few and the number of others."""
    by_file: dict[tuple[str, str], list[int]] = {}
    for file, unit, number in sorted(locations, key=lambda location: (location.file, location.number))[:_FEW]:
        by_file.setdefault((file, unit), []).append(number)
    words = []
    for (file, unit), numbers in by_file.items():
        *some, last = map(str, numbers)
        listing = f"{', '.join(some)} and {last}" if some else last
        words.append(f"{file}, {unit}{'s' if some else ''} {listing}")
    more = f" and {len(locations) - _FEW} more" if len(locations) > _FEW else ""
    return "; ".join(words) + more


def short(value: object) -> str:
    """The ``repr`` of a value, shortened to at most 120 characters for a message."""
    form = reprlib.Repr()
    form.maxstring = form.maxother = 100
    try:
        text = form.repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        text = type(value).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
