"""Readers of delimited text, ``.csv`` and ``.tsv``, on top of Python's csv module."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from fedquilt.core.errors import DataError
from fedquilt.data.limits import refuse_bomb, refuse_large
from fedquilt.data.readers.raw_columns import Location, Raw, Trouble, from_columns

SEPARATORS = ",;\t|"
"""The characters that may separate the cells of a ``.csv`` file."""

_LONGEST = 2**31 - 1  # most characters of a cell; the default of the csv module is less than one long document
_SHARE = 0.125  # of the memory: a character may take four bytes, its list cells more
_PIECE = 1 << 20
_PLAIN = {2: ["text", "label"], 3: ["text", "pair", "label"]}
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")


class _Rows(NamedTuple):
    """The rows, each with the number of its first line and its cells, and the lines that could not be parsed."""

    cells: list[tuple[int, list[str]]]
    troubles: list[Trouble]


def read_csv(path: Path) -> Raw:
    """The columns of a file whose first line holds their names.

    Cells are separated by commas, or by the semicolons, tabs or bars that the first line has instead. A cell in double
    quotes may contain any of them, line breaks, and quotes written twice.

    Raises
    ------
    DataError
        if the file is not UTF-8 text or its header names a column twice. Rows with too few or too many cells or with
        broken quotes are the ``troubles`` of the result.
    """
    text = read_text(path)
    rows = _taken_apart(path, text, _separator(path, text), quotes=True)
    if not rows.cells:
        return from_columns({}, str(path), "line", (), rows.troubles)
    number, names = rows.cells[0]
    return _columns(path, column_names(path, number, names), rows.cells[1:], rows.troubles)


def read_tsv(path: Path, wanted: Collection[str]) -> Raw:
    """The columns of a tab-separated file, with or without a header.

    The first line is a header if one of its cells is a column in ``wanted``. Without a header the columns are text and
    label (two cells) or text, pair and label (three cells); the first line then counts as a row if its last cell is a
    number or a class that occurs in another line. Quotes have their csv meaning if the whole file parses with them;
    otherwise they are ordinary characters.

    Raises
    ------
    DataError
        if the file is not UTF-8 text, or it is unclear whether the first line is a header. Rows with too few or too
        many cells are the ``troubles`` of the result.
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
        return _columns(path, column_names(path, number, stripped), filled[1:], rows.troubles)
    _refuse_names(path, stripped, [cells[-1].strip() for _, cells in filled[1:]], wanted)
    return _columns(path, _PLAIN[len(first)], filled, rows.troubles)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file with unchanged line ends and without a byte order mark; ``.gz`` is unpacked.

    Raises
    ------
    DataError
        if it is not UTF-8 (names the line), larger than fits in memory, or a damaged archive.
    """
    try:
        content = _unpacked(path) if path.suffix.lower() == ".gz" else _bytes(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is not a gzip file or is damaged ({error}); write the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file that you may read") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte {error.start} of the file is not UTF-8; save the file as UTF-8 text"
        ) from error


def _bytes(path: Path) -> bytes:
    refuse_large(path, path.stat().st_size, share=_SHARE)
    return path.read_bytes()


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file, unpacked piece by piece, so that a bomb is noticed before it fills the memory."""
    packed, size, pieces = path.stat().st_size, 0, list[bytes]()
    with gzip.open(path) as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            refuse_bomb(path, packed, size)
            refuse_large(path, size, share=_SHARE)
            pieces.append(piece)
    return b"".join(pieces)


def _taken_apart(path: Path, text: str, separator: str, *, quotes: bool) -> _Rows:
    csv.field_size_limit(_LONGEST)
    # newline="" leaves line ends to the reader, which knows the ones inside quotes; strict, because a quote that is
    # never closed would turn all following rows into one cell
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
            fault = "a quote is never closed" if "end of data" in str(error) else f"its quotes are broken, {error}"
            troubles.append(Trouble(fault, Location(str(path), "line", number)))
            continue
        if cells:
            rows.append((number, cells))


def _separator(path: Path, text: str) -> str:
    """The separator that splits the header; if several do, the first that gives all lines equally many cells."""
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


def column_names(path: Path, number: int, cells: Sequence[str]) -> list[str]:
    """The column names; an empty one, as pandas writes for an index, is numbered."""
    names = [cell.strip() or f"Unnamed: {index}" for index, cell in enumerate(cells)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{path}, line {number}: the column '{twice}' occurs twice; give every column a name of its own"
        )
    return names


def _refuse_names(path: Path, first: Sequence[str], classes: Sequence[str], wanted: Collection[str]) -> None:
    asked = ", ".join(sorted(wanted))
    if len(first) not in _PLAIN:
        raise DataError(
            f"{path}: the first line has {len(first)} cells separated by tabs and none of them is a column that "
            f"was asked for ({asked}); without a header a file must have 2 columns (text, label) or 3 (text, second "
            "text, label)"
        )
    if not _NUMBER.fullmatch(first[-1]) and first[-1] not in classes:
        raise DataError(
            f"{path}, line 1: holds {', '.join(map(repr, first))}, none of which is a column that was asked for "
            f"({asked}), and no other line has the class {first[-1]!r}, so it looks like a header; name its columns in "
            "data.text and data.label, or insert a header line before it"
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
            Location(str(path), "line", number),
        )
        for number, cells in rows
        if len(cells) != len(names)
    ]
    columns = {name: [cells[index] for _, cells in whole] for index, name in enumerate(names)}
    return from_columns(columns, str(path), "line", [number for number, _ in whole], found)
