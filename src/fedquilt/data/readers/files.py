"""Readers of the columns of ``.npz``, ``.json`` and ``.jsonl`` files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.data.limits import refuse_bomb
from fedquilt.data.readers.delimited import read_text
from fedquilt.data.readers.raw_columns import Location, Raw, Trouble, from_columns


def read_npz(path: Path) -> Raw:
    """The arrays of an ``.npz`` archive; never unpickles.

    Raises
    ------
    DataError
        if the file is damaged, is a decompression bomb, holds Python objects, or its arrays differ in length.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        refuse_bomb(path, path.stat().st_size, sum(member.file_size for member in members))
        with np.load(path, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and ast each raise exceptions of their own for broken files
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: holds pickled Python objects, which fedquilt does not load because a pickle can run code; "
                "save plain arrays (numbers or fixed-width strings) with numpy.savez"
            ) from error
        raise DataError(
            f"{path}: is not an .npz archive or is damaged ({str(error).strip() or type(error).__name__}); download "
            "or write the file again"
        ) from error
    odd = next((name for name, column in columns.items() if not isinstance(column, np.ndarray)), None)
    if odd is not None:
        raise DataError(f"{path}: holds '{odd}', which is not an array; save only arrays with numpy.savez")
    lengths = {name: len(column) if column.ndim else 0 for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        listing = ", ".join(f"{name} has {length}" for name, length in lengths.items()) or "it is empty"
        raise DataError(f"{path}: every array must have one row for each example ({listing})")
    empty = next((name for name, column in columns.items() if column.nbytes < len(column)), None)
    if empty is not None:  # such arrays can claim any number of rows at no cost
        raise DataError(f"{path}: the rows of '{empty}' are empty; save arrays of numbers or text")
    return from_columns(columns, str(path))


def read_jsonl(path: Path) -> Raw:
    """The keys of a file with one JSON object on every line, as columns; a missing key is None in that row.

    Raises
    ------
    DataError
        if the file is not UTF-8 text. Lines that are not a JSON object are the ``troubles`` of the result.
    """
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    troubles: list[Trouble] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parsed(line)
            if not isinstance(row, dict):
                raise ValueError(f"{type(row).__name__} found")
        except (ValueError, RecursionError) as error:
            fault = f"not JSON ({_reason(error)}); every line must be one JSON object"
            troubles.append(Trouble(fault, Location(str(path), "line", number)))
            continue
        rows.append(row)
        numbers.append(number)
    return _of_objects(path, "line", rows, numbers, troubles)


def read_json(path: Path) -> Raw:
    """The keys of a JSON list of objects, or of a file with one object on every line (``read_jsonl``), as columns.

    Raises
    ------
    DataError
        if it is neither. Elements of the list that are not objects are the ``troubles`` of the result, counted from 1.
    """
    try:
        rows = _parsed(read_text(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object on every line
            return read_jsonl(path)
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}); it must be a list of objects") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({_reason(error)}); it must be a list of objects") from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: holds one {type(rows).__name__}; a .json file must be a list of objects, or one object per line"
        )
    kept = [(number, row) for number, row in enumerate(rows, start=1) if isinstance(row, dict)]
    troubles = [
        Trouble(f"{type(row).__name__} found; every row must be a JSON object", Location(str(path), "row", number))
        for number, row in enumerate(rows, start=1)
        if not isinstance(row, dict)
    ]
    return _of_objects(path, "row", [row for _, row in kept], [number for number, _ in kept], troubles)


def _of_objects(
    path: Path, unit: str, rows: Sequence[dict[str, Any]], numbers: Sequence[int], troubles: Sequence[Trouble]
) -> Raw:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    if rows and not names:
        raise DataError(
            f"{path}: its objects have no keys; every row must be a JSON object with the column names as keys"
        )
    return from_columns(columns, str(path), unit, numbers, troubles)


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' occurs twice")
    return made


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]
