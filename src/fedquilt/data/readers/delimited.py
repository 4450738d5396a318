"""Readers of text with one row on a line: ``.csv`` and ``.tsv``. Python's csv module takes them apart."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from fedquilt.core.errors import DataError
from fedquilt.data.limits import refuse_large
from fedquilt.data.readers.raw_columns import Place, Raw, Trouble, from_columns

SEPARATORS = ",;\t|"
"""What may stand between the cells of a ``.csv`` file."""

_LONGEST = 2**31 - 1  # characters of a cell; the module's own bound is less than one long document
_PLAIN = {2: ["text", "label"], 3: ["text", "pair", "label"]}
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")


class _Rows(NamedTuple):
    """The first line of each row and its cells, and the lines that could not be taken apart."""

    cells: list[tuple[int, list[str]]]
    troubles: list[Trouble]


def read_csv(path: Path) -> Raw:
    """The columns of a file whose first line holds their names.

    Cells are separated by commas, or by the semicolons, tabs or bars that the first line has in their place. A cell
    in double quotes may hold any of them, line ends, and quotes written twice.

    Raises
    ------
    DataError
        if the file is no UTF-8 text or its line of names holds one twice. Rows with too few or too many cells and
        broken quotes are the result's ``troubles``.
    """
    text = read_text(path)
    rows = _taken_apart(path, text, _separator(path, text), quotes=True)
    if not rows.cells:
        return from_columns({}, str(path), "line", (), rows.troubles)
    number, names = rows.cells[0]
    return _columns(path, _named(path, number, names), rows.cells[1:], rows.troubles)


def read_tsv(path: Path, wanted: Collection[str]) -> Raw:
    """The columns of a tab-separated file, with or without a line of names.

    The first line holds names if one of its cells is a column in ``wanted``. Without names, the columns are text and
    label (two cells) or text, pair and label (three cells); that the first line is a row is seen from its last cell,
    which is a number or a class that another line has too. Where every cell in quotes is written as csv writers do, it
    is read so; otherwise quotes have no meaning.

    Raises
    ------
    DataError
        if the file is no UTF-8 text, or it cannot be told whether the first line holds names. Rows with too few or too
        many cells are the result's ``troubles``.
    """
    text = read_text(path)
    rows = _taken_apart(path, text, "\t", quotes=True)
    if rows.troubles or len({len(cells) for _, cells in rows.cells}) > 1:
        rows = _taken_apart(path, text, "\t", quotes=False)
    filled = [(number, cells) for number, cells in rows.cells if any(cell.strip() for cell in cells)]
    if not filled:
        return from_columns({}, str(path), "line", (), rows.troubles)
    number, first = filled[0]
    stripped = [cell.strip() for cell in first]
    if set(stripped) & set(wanted):
        return _columns(path, _named(path, number, stripped), filled[1:], rows.troubles)
    _refuse_names(path, stripped, [cells[-1].strip() for _, cells in filled[1:]], wanted)
    return _columns(path, _PLAIN[len(first)], filled, rows.troubles)


def read_text(path: Path) -> str:
    """The text of a file, line ends as they are, without the mark that spreadsheets put in front.

    Raises
    ------
    DataError
        if it is not UTF-8, or more than fits in memory; names the line.
    """
    try:
        refuse_large(path, path.stat().st_size, share=0.125)  # a character may take four bytes, its list cells more
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte {error.start} of the file is not UTF-8; save the file as UTF-8 text"
        ) from error


def _taken_apart(path: Path, text: str, separator: str, *, quotes: bool) -> _Rows:
    csv.field_size_limit(_LONGEST)
    # newline="" leaves line ends to the reader, which alone knows those inside quotes; strict, since a quote that is
    # never closed would make one cell of all the rows behind it
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
    )
    rows: list[tuple[int, list[str]]] = []
    troubles: list[Trouble] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return _Rows(rows, troubles)
        except csv.Error as error:
            told = "a quote is never closed" if "end of data" in str(error) else f"its quotes are broken, {error}"
            troubles.append(Trouble(told, Place(str(path), "line", number)))
            continue
        if cells:
            rows.append((number, cells))


def _separator(path: Path, text: str) -> str:
    """What separates the cells: what cuts the line of names, and if several do, all other lines as it does."""
    head = text.lstrip("\r\n")[:100_000]

    def width(separator: str) -> int:
        cells = _taken_apart(path, head, separator, quotes=True).cells
        return len(cells[0][1]) if cells else 0

    cutting = [separator for separator in SEPARATORS if width(separator) > 1]
    if len(cutting) < 2:
        return cutting[0] if cutting else ","
    for separator in cutting:
        rows = _taken_apart(path, text, separator, quotes=True)
        if not rows.troubles and len({len(cells) for _, cells in rows.cells}) == 1:
            return separator
    return cutting[0]


def _named(path: Path, number: int, cells: Sequence[str]) -> list[str]:
    """The names of columns; one without a name, as of an index that pandas wrote, is numbered."""
    names = [cell.strip() or f"Unnamed: {place}" for place, cell in enumerate(cells)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}, line {number}: the column '{twice}' stands twice; give every column its own name")
    return names


def _refuse_names(path: Path, first: Sequence[str], classes: Sequence[str], wanted: Collection[str]) -> None:
    asked = ", ".join(sorted(wanted))
    if len(first) not in _PLAIN:
        raise DataError(
            f"{path}: the first line has {len(first)} cells separated by tabs and none of them is a column name "
            f"you asked for ({asked}); without a line of names a file must have 2 columns (text, label) "
            "or 3 (text, second text, label)"
        )
    if not _NUMBER.fullmatch(first[-1]) and first[-1] not in classes:
        raise DataError(
            f"{path}, line 1: holds {', '.join(map(repr, first))}, none of which is a column you asked for ({asked}), "
            f"and no other line is of a class {first[-1]!r}, so these look like names; give them in data.text and "
            "data.label, or put a line with the names of the columns before it"
        )


def _columns(
    path: Path, names: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], troubles: Sequence[Trouble]
) -> Raw:
    whole = [(number, cells) for number, cells in rows if len(cells) == len(names)]
    found = list(troubles)
    found += [
        Trouble(
            f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}, but the file has {len(names)} columns "
            f"({', '.join(names)})",
            Place(str(path), "line", number),
        )
        for number, cells in rows
        if len(cells) != len(names)
    ]
    columns = {name: [cells[place] for _, cells in whole] for place, name in enumerate(names)}
    return from_columns(columns, str(path), "line", [number for number, _ in whole], found)
