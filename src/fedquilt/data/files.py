"""Readers of single files: ``.npz``, ``.tsv``, ``.csv``, ``.json`` and ``.jsonl``. Each gives a file's columns."""

from __future__ import annotations

import csv
import json
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.data.raw import Raw, from_columns


def read_npz(path: Path) -> Raw:
    """The arrays of an ``.npz`` archive; never unpickles.

    Raises
    ------
    DataError
        if the file is damaged, holds Python objects, or its arrays differ in length.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error) and zipfile.is_zipfile(path):
            raise DataError(
                f"{path}: holds pickled Python objects, which fedquilt does not load because a pickle can run code; "
                "save plain arrays (numbers or fixed-width strings) with numpy.savez"
            ) from error
        raise _corrupt(path, "an .npz archive", error) from error
    except (OSError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise _corrupt(path, "an .npz archive", error) from error
    lengths = {name: len(column) if column.ndim else 0 for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        listing = ", ".join(f"{name} has {length}" for name, length in lengths.items()) or "it is empty"
        raise DataError(f"{path}: every array must have one row for each example ({listing})")
    return from_columns(columns)


def read_tsv(path: Path, wanted: Collection[str]) -> Raw:
    """The columns of a tab-separated file, with or without a line of names.

    The first line holds names if one of its cells is a column in ``wanted``. Otherwise every line is a row, and the
    columns are text and label (two cells) or text, pair and label (three cells). Quotes have no meaning.

    Raises
    ------
    DataError
        if the file is no UTF-8 text, or a line has too few or too many cells.
    """
    rows = [(number, line.split("\t")) for number, line in enumerate(_text(path).split("\n"), start=1) if line.strip()]
    rows = [(number, [cell.rstrip("\r") for cell in cells]) for number, cells in rows]
    first = [cell.strip() for cell in rows[0][1]] if rows else []
    if set(first) & set(wanted):
        return _columns(path, first, rows[1:])
    plain = {2: ["text", "label"], 3: ["text", "pair", "label"]}
    if rows and len(first) not in plain:
        raise DataError(
            f"{path}: the first line has {len(first)} cells separated by tabs and none of them is a column name "
            "you asked for "
            f"({', '.join(sorted(wanted))}); without a line of names a file must have 2 columns (text, label) "
            "or 3 (text, second text, label)"
        )
    return _columns(path, plain.get(len(first), ["text", "label"]), rows)


def read_csv(path: Path) -> Raw:
    """The columns of a comma-separated file whose first line holds their names.

    Raises
    ------
    DataError
        if the file is no UTF-8 text, or a row has too few or too many cells.
    """
    reader = csv.reader(_text(path).splitlines(keepends=True))
    try:
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise _corrupt(path, "comma-separated text", error) from error
    return _columns(path, [name.strip() for name in rows[0][1]] if rows else [], rows[1:])


def read_jsonl(path: Path) -> Raw:
    """The keys of a file that has one JSON object on every line; a key that a line lacks is None there.

    Raises
    ------
    DataError
        if a line is not a JSON object; names the line.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg}); every line must be one JSON object"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: {type(row).__name__} found; every line must be one JSON object")
        rows.append(row)
    return _of_objects(rows)


def read_json(path: Path) -> Raw:
    """The keys of a file that is one JSON list of objects, or has one object on every line; see ``read_jsonl``.

    Raises
    ------
    DataError
        if it is neither; names the row.
    """
    try:
        rows = json.loads(_text(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # a second line with an object of its own
            return read_jsonl(path)
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}); it must be a list of objects") from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: holds one {type(rows).__name__}; a .json file must be one list of objects, or one object a line"
        )
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: {type(row).__name__} found; every row must be a JSON object")
    return _of_objects(rows)


def _of_objects(rows: Sequence[dict[str, Any]]) -> Raw:
    names = dict.fromkeys(name for row in rows for name in row)
    return from_columns({name: [row.get(name) for row in rows] for name in names})


def _columns(path: Path, names: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]) -> Raw:
    for number, cells in rows:
        if len(cells) != len(names):
            raise DataError(
                f"{path}, line {number}: {len(cells)} cells, but the file has {len(names)} columns ({', '.join(names)})"
            )
    return from_columns({name: [cells[place] for _, cells in rows] for place, name in enumerate(names)})


def _text(path: Path) -> str:
    try:
        # newline="" keeps line ends inside quoted cells; utf-8-sig drops the mark that spreadsheets put in front
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _corrupt(path: Path, expected: str, error: Exception) -> DataError:
    return DataError(f"{path}: is not {expected} or is damaged ({error}); fetch or write the file again")
