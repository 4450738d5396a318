"""Data in memory in place of a file: dictionaries of columns, data frames and data sets."""

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
    "a dictionary of columns (arrays or lists), a pandas data frame or a datasets.Dataset; or a pair (train, test) or "
    "a dictionary by split of these"
)


def splits_in_memory(rows: Any) -> dict[str, Raw]:
    """The columns of each split by name; data without splits have the name ``""``.

    Raises
    ------
    DataError
        if ``rows`` has none of the forms in ``FORMS``, or its columns differ in length.
    """
    if isinstance(rows, tuple) and len(rows) == 2 and all(map(is_rows, rows)):
        rows = dict(zip(("train", "test"), rows, strict=True))
    if _is_of(rows, "datasets"):
        return hub.splits_of(rows, "the dataset")
    if isinstance(rows, Mapping) and rows and all(map(is_rows, rows.values())):
        return {str(name): _table(one, f"the rows of '{name}'") for name, one in rows.items()}
    return {"": _table(rows, "the rows")}


def is_rows(value: Any) -> bool:
    """Whether a value is one table: a dictionary of columns, a data frame or a data set."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(_is_column, value.values()))
    return _is_of(value, "datasets") or _is_frame(value)


def digest(splits: Mapping[str, Raw]) -> str:
    """The sha256 (hex) of the names and values of all columns, independent of their container."""
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
        raise DataError(f"data: rows cannot be read from {type(rows).__name__}; give {FORMS}")
    columns: dict[str, Any] = {str(name): _column(values) for name, values in rows.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise DataError(f"data: {where} have columns of different lengths ({listing}); they must be equal")
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
    """Whether a value's class belongs to one of these packages, without importing them."""
    return type(value).__module__.partition(".")[0] in packages


def _bytes_of(value: Any, column: str) -> bytes:
    """An unambiguous encoding of a value: different values have different bytes."""
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
        raise DataError(
            f"data: column '{column}' holds a {type(value).__name__}, which has no digest; give arrays, text or numbers"
        )
    return f"{type(value).__name__} {len(made)} ".encode() + made
