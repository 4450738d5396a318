"""Rows that the calling program holds: columns of arrays, data frames, datasets; in place of a file or folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.data.readers import hub
from fedquilt.data.readers.raw_columns import Raw, from_columns

FORMS = (
    "a dictionary of columns (arrays or lists), a pandas data frame or a datasets.Dataset; or of these a pair "
    "(train, test), or a dictionary by split"
)


def splits_in_memory(rows: Any) -> dict[str, Raw]:
    """The columns of each split, by its name; ``""`` where there is one without a name.

    Raises
    ------
    DataError
        if ``rows`` is nothing that ``FORMS`` lists, or its columns differ in length.
    """
    if isinstance(rows, tuple) and len(rows) == 2 and all(map(is_rows, rows)):
        rows = dict(zip(("train", "test"), rows, strict=True))
    if _is_of(rows, "datasets"):
        return hub.splits_of(rows, "the dataset")
    if isinstance(rows, Mapping) and rows and all(map(is_rows, rows.values())):
        return {str(name): _table(one, f"the rows of '{name}'") for name, one in rows.items()}
    return {"": _table(rows, "the rows")}


def is_rows(value: Any) -> bool:
    """Whether a value is one table of rows: columns, a data frame, a dataset."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(_is_column, value.values()))
    return _is_of(value, "datasets") or _is_frame(value)


def digest(splits: Mapping[str, Raw]) -> str:
    """The sha256, in hex, of the names and values of all columns, whatever holds them."""
    total = hashlib.sha256()
    for split, raw in splits.items():
        for name in sorted(raw.names):
            values = raw.read(name)
            total.update(json.dumps([split, name, raw.class_names.get(name, ())]).encode())
            for value in values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else values:
                total.update(_bytes_of(value, name))
    return total.hexdigest()


def _table(rows: Any, where: str) -> Raw:
    if _is_of(rows, "datasets"):
        return hub.splits_of(rows, where)[""]
    if _is_frame(rows):
        rows = {name: rows[name].to_numpy() for name in rows.columns}
    if not isinstance(rows, Mapping) or not rows or not all(map(_is_column, rows.values())):
        raise DataError(f"data: {type(rows).__name__} is nothing that rows can be read from; give {FORMS}")
    columns: dict[str, Any] = {str(name): _column(values) for name, values in rows.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise DataError(f"data: {where} have columns of several lengths ({told}); give each row a value in every one")
    return from_columns(columns, where)


def _column(values: Any) -> Sequence[Any] | np.ndarray:
    if _is_of(values, "torch"):
        values = values.numpy()
    elif _is_of(values, "pandas"):
        values = values.to_numpy()
    column: Sequence[Any] | np.ndarray = values
    if isinstance(values, np.ndarray) and values.dtype == object:
        column = values.tolist()
    return column


def _is_column(value: Any) -> bool:
    return isinstance(value, np.ndarray | list | tuple) or (
        _is_of(value, "torch", "pandas") and hasattr(value, "dtype")
    )


def _is_frame(value: Any) -> bool:
    return _is_of(value, "pandas") and hasattr(value, "columns")


def _is_of(value: Any, *packages: str) -> bool:
    """Whether a value's class is of one of these packages, none of which is imported for it."""
    return type(value).__module__.partition(".")[0] in packages


def _bytes_of(value: Any, column: str) -> bytes:
    """Bytes that two values have in common only if they are the same."""
    if isinstance(value, bytes):
        made = value
    elif hasattr(value, "tobytes") and hasattr(value, "size"):  # an array, or a picture
        made = f"{getattr(value, 'dtype', getattr(value, 'mode', ''))} {getattr(value, 'shape', value.size)} ".encode()
        made += value.tobytes()
    elif isinstance(value, Mapping | list | tuple):
        items = sorted(value.items()) if isinstance(value, Mapping) else enumerate(value)
        made = b"".join(_bytes_of(key, column) + _bytes_of(one, column) for key, one in items)
    elif value is None or isinstance(value, str | int | float):
        made = repr(value).encode("utf-8", "surrogatepass")
    else:
        raise DataError(f"data: column '{column}' holds a {type(value).__name__}, which cannot be told from another")
    return f"{type(value).__name__} {len(made)} ".encode() + made
