"""The reader of spreadsheets, ``.xlsx``, on top of openpyxl."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedquilt.core.errors import DataError
from fedquilt.core.shell import install_extra
from fedquilt.data.limits import refuse_bomb
from fedquilt.data.readers.delimited import column_names
from fedquilt.data.readers.raw_columns import Location, Raw, Trouble, from_columns

_MOST_ROWS = 1 << 20  # of a sheet, as every spreadsheet program has it
_UNPACKED_SHARE = 8  # cells as objects take several times the bytes of their text


def read_xlsx(path: Path) -> dict[str, Raw]:
    """The columns of each sheet that holds cells, by the sheet's name; by ``""`` if there is one.

    The first row with cells holds the names of the columns. Rows without any cell are skipped. A formula counts as the
    value that the program which saved the file computed; nothing is computed here.

    Raises
    ------
    DataError
        if openpyxl is not installed, or the file is damaged or a decompression bomb, or names a column twice. Rows with
        a cell beyond the named columns, or with an error in place of a value, are the ``troubles`` of the result.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise DataError(
            f"{path}: spreadsheets are read by openpyxl, which is not installed; save the sheet as CSV, or install it "
            f"with: {install_extra('excel')}"
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        refuse_bomb(path, path.stat().st_size, _UNPACKED_SHARE * unpacked)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheets = {sheet.title: [*_filled(path, sheet)] for sheet in book.worksheets}
        finally:
            book.close()
    except DataError:
        raise
    except Exception as error:  # openpyxl, zipfile and the XML parser each have exceptions of their own
        raise DataError(
            f"{path}: is not a spreadsheet (.xlsx) or is damaged ({str(error).strip() or type(error).__name__}); save "
            "it again, or as CSV"
        ) from error
    found = {name: _columns(path, name, rows) for name, rows in sheets.items()}
    filled = {name: raw for name, raw in found.items() if raw.names}
    return {"": next(iter(filled.values()), from_columns({}, str(path)))} if len(filled) < 2 else filled


def _filled(path: Path, sheet: Any) -> Iterator[tuple[int, list[tuple[Any, str]]]]:
    """The rows that hold cells, with their numbers: each cell's value and type, up to the last one with a value."""
    sheet.reset_dimensions()  # rows would be filled up to the size that the file states, which may be all there can be
    for number, row in enumerate(sheet.iter_rows(), start=1):
        if number > _MOST_ROWS:
            raise DataError(f"{path}: sheet '{sheet.title}' has rows beyond {_MOST_ROWS:,}, the most of a spreadsheet")
        cells = [(cell.value, getattr(cell, "data_type", "n")) for cell in row]
        while cells and cells[-1][0] is None:
            cells.pop()
        if cells:
            yield number, cells


def _columns(path: Path, sheet: str, filled: list[tuple[int, list[tuple[Any, str]]]]) -> Raw:
    """The columns of one sheet."""
    if not filled:
        return from_columns({}, str(path))
    number, heading = filled[0]
    names = column_names(path, number, ["" if value is None else str(value) for value, _ in heading])
    kept: list[tuple[int, list[Any]]] = []
    troubles: list[Trouble] = []
    for number, cells in filled[1:]:
        wrong = next((str(value) for value, kind in cells if kind == "e"), None)
        beyond = len(cells) > len(names)
        if wrong is not None or beyond:
            fault = f"a cell of sheet '{sheet}' holds the error {wrong}" if wrong else "cells beyond the named columns"
            troubles.append(Trouble(fault, Location(str(path), "row", number)))
            continue
        values = [_plain(value) for value, _ in cells[: len(names)]]
        kept.append((number, values + [None] * (len(names) - len(values))))
    columns = {name: [values[at] for _, values in kept] for at, name in enumerate(names)}
    return from_columns(columns, str(path), "row", [number for number, _ in kept], troubles)


def _plain(value: Any) -> Any:
    """A cell's value as text or a number; moments as ISO text."""
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value
