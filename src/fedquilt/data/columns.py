"""Interpreting the columns of a source: text, classes, client ids and the published split."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedquilt.core.errors import DataError, suggestion
from fedquilt.data.bad_rows import Troubles
from fedquilt.data.readers.raw_columns import Raw

_WHOLE = re.compile(r"-?[0-9]{1,4000}")  # Python does not convert longer ones to int either
_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,3})?")
_FEW = 20  # more different decimal numbers than these are no classes
_NO_LABEL = "no label"
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def found(raw: Raw, name: str) -> str | None:
    """The name of the column called ``name``, or ``name`` with an ``s`` appended, or None if there is neither."""
    return next((candidate for candidate in (name, name + "s") if candidate in raw.names), None)


def column(raw: Raw, key: str, name: str, source: str) -> Sequence[Any]:
    """The values of the column that ``data.<key>`` names.

    Raises
    ------
    DataError
        if there is no such column.
    """
    there = found(raw, name)
    if there is None:
        raise DataError(
            f"data.{key} = '{name}': '{source}' has no such column{suggestion(name, raw.names)}; columns: "
            f"{', '.join(raw.names)}"
        )
    values: Sequence[Any] = raw.read(there)
    return values


def is_nothing(value: Any) -> bool:
    """Whether a cell holds no value: None, or the NaN that stands for it in a column of numbers."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def fault_of_text(value: Any) -> str | None:
    """The problem with a value that should be text, or None if there is none."""
    if not isinstance(value, str):
        return "not text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, which is not valid text"
    return None


def strings(raw: Raw, key: str, name: str, source: str, troubles: Troubles) -> list[str]:
    """The text of every row in the column that ``data.<key>`` names; empty for a value that is not text.

    A row without any value is missing its text. So is one with an empty text where such rows are left out, except for
    a second text.

    Parameters
    ----------
    raw
        The columns of the source.
    key, name
        The key in ``[data]``, and the column's name, its value.
    source
        The source as the user wrote it, for messages.
    troubles
        Receives the rows whose value is not text.

    Raises
    ------
    DataError
        if there is no such column.
    """
    made = []
    for row, value in enumerate(column(raw, key, name, source)):
        fault = fault_of_text(value)
        if fault:
            troubles.add(f"data.{key} = '{name}': {fault}", row, value, show=True, missing=is_nothing(value))
        elif troubles.drops and key != "pair" and not value.strip():
            troubles.add(f"data.{key} = '{name}': an empty text", row, missing=True)
        made.append("" if fault else str(value))
    return made


def classes(raw: Raw, name: str, source: str, troubles: Troubles) -> tuple[Tensor | None, tuple[str, ...]]:
    """The class of each row, int64 (n,), and the class names in order; ``(None, ())`` where all labels are hidden.

    The names are those that the source declares, or else the labels as text: in numerical order if all are whole
    numbers, otherwise in alphabetical order. ``07`` and ``7`` are two classes; the number 7.0 is the class ``7``; the
    truth values are ``False`` and ``True``. Rows without a usable label are noted in ``troubles``.

    Raises
    ------
    DataError
        if there is no such column, or it holds measurements.
    """
    given = column(raw, "label", name, source)
    values = given.tolist() if isinstance(given, np.ndarray) else list(given)
    names = raw.class_names.get(found(raw, name) or name)
    if names is not None and all(value == -1 for value in values):  # benchmarks hide the labels of their test split
        return None, ()
    where = f"data.label = '{name}'"
    for row, value in enumerate(values):
        fault = _fault_of_label(value, None if names is None else len(names))
        if fault:
            troubles.add(f"{where}: {fault}", row, value, show=True, missing=fault == _NO_LABEL)
            values[row] = None
    kinds: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if value is not None:
            kind = "text" if isinstance(value, str) else "truth values" if isinstance(value, bool) else "numbers"
            kinds.setdefault(kind, []).append(row)
    if len(kinds) > 1:
        often = max(kinds, key=lambda kind: len(kinds[kind]))
        for kind, rows in kinds.items():
            for row in rows if kind != often else ():
                troubles.add(f"{where}: {kind} where most labels are {often}", row, values[row], show=True)
                values[row] = None
    if names is not None:
        return torch.tensor([0 if value is None else int(value) for value in values]), names
    written = [None if value is None else _written(value) for value in values]
    order = _in_order({value for value in written if value is not None})
    if measured := measurements(order, len(values)):
        raise DataError(f"data.source = '{source}', {where}: {measured}")
    numbers = {value: number for number, value in enumerate(order)}
    return torch.tensor([0 if value is None else numbers[value] for value in written]), order


def measurements(labels: Collection[str], num_rows: int) -> str:
    """The fault of a column of labels that holds measurements, as the distinct labels show; empty if there is none."""
    if len(labels) <= max(_FEW, num_rows // 10) or not all(_NUMBER.fullmatch(one.strip()) for one in labels):
        return ""
    if all(_WHOLE.fullmatch(one.strip()) for one in labels):
        return ""
    return (
        f"{len(labels)} different decimal numbers in {num_rows} rows, such as {next(iter(labels))}, are measurements "
        "and no classes; name another column, or write classes in its place, such as 'low' and 'high'"
    )


def groups(raw: Raw, name: str, source: str, troubles: Troubles) -> tuple[Tensor, tuple[str, ...]]:
    """The natural client id of each row, int64 (n,), and the names of the ids.

    A column of whole numbers is used as it is, and there are no names; other ids are numbered in sorted order. Rows
    without a usable id are noted in ``troubles``.
    """
    values = column(raw, "group", name, source)
    array = values if isinstance(values, np.ndarray) else None
    if array is not None and array.ndim == 1 and np.issubdtype(array.dtype, np.integer) and array.max() < 2**63:
        return torch.from_numpy(array.astype(np.int64)), ()
    ids = []
    for row, value in enumerate(values):
        missing = value == "" or is_nothing(value)
        odd = not isinstance(value, str | int | float | np.generic)
        if missing or odd:
            fault = "no client id" if missing else "a client id that is neither text nor number"
            troubles.add(f"data.group = '{name}': {fault}", row, value, show=True, missing=missing)
        ids.append(0 if missing or odd else value)
    if all(type(value) is int and abs(value) < 2**63 for value in ids):
        return torch.tensor(ids, dtype=torch.int64), ()
    names, numbers = np.unique([_written(value) for value in ids], return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64)), tuple(names.tolist())


def published(raw: Raw, troubles: Troubles) -> Tensor | None:
    """Whether each row is a training row by the column ``is_train``, bool (n,); None if there is no such column."""
    if "is_train" not in raw.names:
        return None
    made = []
    for row, value in enumerate(raw.read("is_train")):
        flag = _FLAGS.get(_written(value).lower()) if isinstance(value, str | int | float | np.generic) else None
        if flag is None:
            troubles.add("column 'is_train': neither true nor false", row, value, show=True)
        made.append(bool(flag))
    return torch.tensor(made)


def _fault_of_label(value: Any, num_names: int | None) -> str | None:
    if is_nothing(value) or value != value or (isinstance(value, str) and not value.strip()):
        return _NO_LABEL
    if num_names is not None:
        fits = isinstance(value, int) and 0 <= value < num_names
        return None if fits else f"not a class number from 0 to {num_names - 1}"
    if isinstance(value, str):
        return fault_of_text(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return None
    return "a label is a class: text or a whole number"


def _written(value: Any) -> str:
    """A label or an id as text; an integer too long for Python to write in decimal is written in hexadecimal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return str(value)
    except ValueError:
        return hex(value)


def _in_order(names: set[str]) -> tuple[str, ...]:
    numbers = all(_WHOLE.fullmatch(name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))
