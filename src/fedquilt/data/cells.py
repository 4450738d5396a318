"""Columns of numbers and of categories: the inputs of a table whose rows are neither images nor text."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedquilt.core.errors import DataError, suggestion
from fedquilt.data.bad_rows import Troubles
from fedquilt.data.columns import fault_of_text
from fedquilt.data.readers.raw_columns import Raw

MISSING = frozenset({"", "?", "na", "n/a", "nan", "<na>", "null", "none"})
"""What a cell without a value may hold, in any case."""

_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?")
_IDS = frozenset({"id", "index"})  # columns that number the rows; pandas writes its index without a name


@dataclass(frozen=True, eq=False)
class Cells:
    """Columns of one length by name: of numbers, float64 with NaN for missing ones, or of categories, text or None."""

    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def categorical(self) -> tuple[str, ...]:
        """The names of the columns of categories."""
        return tuple(name for name, column in self.columns.items() if column.dtype == object)

    def rows(self, indices: np.ndarray) -> Cells:
        """The rows numbered ``indices``, in that order."""
        return Cells({name: column[indices] for name, column in self.columns.items()})

    def of(self, names: Sequence[str]) -> Cells:
        """These columns alone, in this order."""
        return Cells({name: self.columns[name] for name in names})


@dataclass(frozen=True)
class Wanted:
    """Which columns of a source are read as cells, and as what.

    Attributes
    ----------
    columns
        The columns; None for all but those of labels, client ids and row numbers, and the published split.
    categorical
        Columns that hold categories whatever they look like.
    numbers
        Columns that hold numbers; text in them is an error.
    """

    columns: tuple[str, ...] | None = None
    categorical: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


def read_cells(raw: Raw, wanted: Wanted, apart: Collection[str], source: str, troubles: Troubles) -> Cells:
    """The wanted columns of a source.

    A column holds numbers if all its values are numbers, or text that is a number, and categories otherwise; truth
    values are categories. An array with several numbers in each row gives a column for each of them.

    Parameters
    ----------
    raw, source
        The columns of the source, and its name for messages.
    wanted
        Which of them are read.
    apart
        The columns that are read as something else, such as the labels.
    troubles
        Receives the rows whose values cannot be used.

    Raises
    ------
    DataError
        if a wanted column is missing or holds neither numbers nor categories, or there is none.
    """
    needed = (*(wanted.columns or ()), *wanted.categorical)
    whole = wanted.columns is None or not set(needed) <= set(raw.names) - set(apart)
    offered = dict(_flat(raw, [name for name in (raw.names if whole else needed) if name not in apart]))
    for key, names in (("columns", wanted.columns or ()), ("categorical", wanted.categorical)):
        for name in names:
            if name not in offered:
                what = "is read as labels, client ids or split" if name in apart else "is not there"
                raise DataError(
                    f"data.{key} = {[*names]}: the column '{name}' {what}{suggestion(name, [*offered])}; the columns "
                    f"of '{source}' are: {', '.join(offered) or 'none'}"
                )
    chosen = wanted.columns or [name for name in offered if not _numbers_rows(name)]
    if not chosen:
        raise DataError(
            f"data.source = '{source}': has no column of numbers or categories besides {', '.join(raw.names)}; name "
            "them in data.columns"
        )
    made = {}
    for name in chosen:
        kind = object if name in wanted.categorical else float if name in wanted.numbers else None
        made[name] = _column(name, offered[name], kind, troubles)
    return Cells(made)


def concatenated_cells(parts: Sequence[Cells]) -> Cells:
    """The rows of all parts, one part after another.

    Raises
    ------
    DataError
        if they differ in their columns, or in what these hold.
    """
    first = parts[0]
    for number, part in enumerate(parts):
        odd = sorted(set(part.names) ^ set(first.names))
        odd += [name for name in first.names if name in part.names and _is_text(part, name) != _is_text(first, name)]
        if odd:
            raise DataError(
                f"source {number} differs from source 0 in the columns {', '.join(map(repr, odd))}, which are missing "
                "in one, or hold numbers in one and categories in the other; name those to read in data.columns, and "
                "columns of categories in data.categorical"
            )
    return Cells({name: np.concatenate([part.columns[name] for part in parts]) for name in first.names})


def _is_text(cells: Cells, name: str) -> bool:
    return cells.columns[name].dtype == object


def _numbers_rows(name: str) -> bool:
    return name.casefold() in _IDS or name.startswith("Unnamed:")


def _flat(raw: Raw, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The columns by name; of an array with several numbers in each row one column for each, ``pixel_0_3``."""
    for name in names:
        values = raw.read(name)
        if not isinstance(values, np.ndarray) or values.ndim < 2:
            yield name, values
            continue
        for place in np.ndindex(values.shape[1:]):
            yield f"{name}_{'_'.join(map(str, place))}", values[(slice(None), *place)]


def _column(name: str, values: Any, kind: type | None, troubles: Troubles) -> np.ndarray:
    """A column as float64 or as objects; ``kind`` says which, None for what its values look like."""
    if isinstance(values, np.ndarray):
        if kind is not object and values.dtype.kind in "iuf":
            return _finite(name, values.astype(np.float64), values, troubles)
        values = values.tolist()
    given = [None if _is_missing(value) else value for value in values]
    if kind is not object and (read := _floats([value for value in given if value is not None])) is not None:
        made = np.full(len(given), math.nan)
        made[[value is not None for value in given]] = read
        return made
    for row, value in enumerate(given):
        if not isinstance(value, str | int | float | np.generic | None):
            troubles.add(
                f"data.columns: '{name}' holds neither a number nor text; name columns to read", row, value, show=True
            )
            given[row] = None
    numbers = [_number(value) for value in given]
    present = sum(value is not None for value in given)
    known = sum(number is not None for number in numbers)
    if kind is not float and (kind is object or 2 * known < present):
        return _texts(name, given, troubles)
    for row, (value, number) in enumerate(zip(given, numbers, strict=True)):
        if value is not None and number is None:
            advice = "; if these are categories, name the column in data.categorical" if kind is None else ""
            troubles.add(f"data.columns: '{name}' holds numbers, and here none{advice}", row, value, show=True)
    return _finite(name, np.array([math.nan if number is None else number for number in numbers]), given, troubles)


def _finite(name: str, numbers: np.ndarray, given: Any, troubles: Troubles) -> np.ndarray:
    for row in np.flatnonzero(np.isinf(numbers)).tolist():
        troubles.add(f"data.columns: '{name}' holds a number that is not finite", row, given[row], show=True)
    return numbers


def _texts(name: str, given: Sequence[Any], troubles: Troubles) -> np.ndarray:
    made = np.empty(len(given), dtype=object)
    for row, value in enumerate(given):
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        fault = fault_of_text(text)
        if fault:
            troubles.add(f"data.columns: '{name}': {fault}", row, value, show=True)
        made[row] = None if value is None or fault else text
    return made


def _floats(values: Sequence[Any]) -> np.ndarray | None:
    """The values as numbers if all of them are, and finite; the common case, without a look at each of them."""
    kinds = {*map(type, values)}
    if not (kinds <= {str} or kinds <= {int, float}) or (kinds == {str} and any("_" in value for value in values)):
        return None  # Python takes 1_000 for a number
    try:
        made = np.array([*map(float, values)], dtype=np.float64)
    except (OverflowError, ValueError):
        return None
    return made if np.isfinite(made).all() else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool | np.bool_) or value is None:
        return None
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().casefold() in MISSING
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return True
    return type(value).__name__ in ("NAType", "NaTType")  # of pandas
