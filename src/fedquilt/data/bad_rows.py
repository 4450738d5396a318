"""Rows of a source that cannot be used: collected, then reported together with file, line and count."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

from fedquilt.core.errors import DataError
from fedquilt.data.readers.raw_columns import Location, Origin, Trouble

_FEW = 5  # rows that are listed for each problem


class Troubles:
    """The rows of a source that cannot be used, grouped by problem."""

    def __init__(self, origin: Origin, found: Sequence[Trouble] = ()) -> None:
        self._origin = origin
        self._found: dict[str, dict[Location, str]] = {}
        for what, location in found:
            self._found.setdefault(what, {}).setdefault(location, "")

    def add(self, what: str, row: int, value: object = None, *, show: bool = False) -> None:
        """Note that row number ``row`` cannot be used; with ``show`` the report quotes the first such ``value``."""
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
        raise DataError(
            f"{source}: {_rows(len(locations))} cannot be used; repair or remove {them}\n" + "\n".join(lines)
        )


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
