"""From columns of numbers and categories to the numbers that a model takes: fitted once, then frozen.

Scikit-learn's transformers learn what a ``Preprocessor`` holds, numbers and lists of categories, and this module
applies it by itself: it can be written as JSON and applied without scikit-learn, wherever a model is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedquilt.core.errors import DataError, ModelError
from fedquilt.data.cells import Cells, Wanted

MOST_CATEGORIES = 32
"""The most features of a column of categories; the rarest categories then share one."""

FORMAT = "fedquilt.tabular"
_LARGEST = 1e6


@dataclass(frozen=True)
class Number:
    """A column of numbers: ``(x - centre) / scale``, with ``fill`` in place of missing values, at most a million.

    ``flagged`` adds a feature that is 1 where the value is missing.
    """

    name: str
    fill: float
    centre: float
    scale: float
    flagged: bool

    def features(self, column: np.ndarray) -> np.ndarray:
        """The column's features, (rows, 1 or 2)."""
        missing = np.isnan(column)
        scaled = (np.where(missing, self.fill, column) - self.centre) / self.scale
        scaled = scaled.clip(-_LARGEST, _LARGEST)  # what float32 cannot hold would become infinite
        return np.stack([scaled, missing] if self.flagged else [scaled], axis=1)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, f"{self.name} is missing") if self.flagged else (self.name,)


@dataclass(frozen=True)
class Category:
    """A column of categories: one feature for each of ``values``, where None stands for a missing value.

    ``other`` adds a feature for every other category; without it those have no feature, and all are 0.
    """

    name: str
    values: tuple[str | None, ...]
    other: bool

    def features(self, column: np.ndarray) -> np.ndarray:
        """The column's features, (rows, features), each 0 or 1."""
        place = {value: index for index, value in enumerate(self.values)}
        made = np.zeros((len(column), len(self.names)))
        found = [place.get(value, len(self.values)) for value in column.tolist()]
        for row, index in enumerate(found):
            if index < made.shape[1]:
                made[row, index] = 1
        return made

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features."""
        own = tuple(f"{self.name} is missing" if value is None else f"{self.name} = {value}" for value in self.values)
        return (*own, f"{self.name} is another") if self.other else own


@dataclass(frozen=True)
class Preprocessor:
    """Turns cells into features: the columns of numbers first, then those of categories, each in its order.

    ``preprocessor(cells)`` gives float32 (rows, ``width``).
    """

    columns: tuple[Number | Category, ...]

    def __call__(self, cells: Cells) -> Tensor:
        """The features of the rows, float32 (rows, ``width``).

        Raises
        ------
        DataError
            if a column is missing, or holds numbers where there should be categories or the other way round.
        """
        blocks = [column.features(_taken(cells, column)) for column in self.columns]
        return torch.from_numpy(np.concatenate(blocks, axis=1).astype(np.float32))

    @property
    def wanted(self) -> Wanted:
        """The columns of a source that it takes, and what they hold."""
        texts = tuple(column.name for column in self.columns if isinstance(column, Category))
        numbers = tuple(column.name for column in self.columns if isinstance(column, Number))
        return Wanted((*numbers, *texts), texts, numbers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def width(self) -> int:
        """The number of features."""
        return len(self.names)

    def as_json(self) -> dict[str, Any]:
        """What has been learned, as JSON values from which ``preprocessor_from`` makes an equal preprocessor."""
        return {"format": FORMAT, "columns": [asdict(column) for column in self.columns]}


def preprocessor_from(content: Mapping[str, Any], where: str) -> Preprocessor:
    """The preprocessor of JSON values; ``where`` names their file in the error.

    Raises
    ------
    ModelError
        if they are not those of a preprocessor.
    """
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        made = tuple(_column_from(dict(column)) for column in content["columns"])
        if not made:
            raise ValueError("no columns")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: holds no preprocessing of columns that can be read ({error})") from error
    return Preprocessor(made)


def fit(
    cells: Cells,
    rows: np.ndarray | None = None,
    *,
    ranges: Mapping[str, Sequence[float]] = MappingProxyType({}),
    categories: Mapping[str, Sequence[str]] = MappingProxyType({}),
    most: int = MOST_CATEGORIES,
) -> Preprocessor:
    """Learn from rows how columns become features.

    Missing numbers become the median, beside a feature that says so if any was missing; then every column of numbers
    has mean 0 and variance 1 (``SimpleImputer``, ``MissingIndicator``, ``StandardScaler``). Categories become features
    of 0 and 1 (``OneHotEncoder``); a missing value is a category if there was one.

    Parameters
    ----------
    cells, rows
        The columns, and the numbers of the rows to learn from; all for None.
    ranges, categories
        What is declared of some columns, see ``declared``; from these nothing is learned.
    most
        The most features of a column of categories; the rarest ones then share the last, as do unseen ones.

    Raises
    ------
    DataError
        if there is no row, or a declared column does not hold what is declared.
    """
    own = cells if rows is None else cells.rows(rows)
    if not len(own):
        raise DataError("there are no rows to fit the preprocessing of columns on; give at least one")
    stated = {column.name: column for column in declared(ranges, categories).columns}
    made = []
    for name in own.names:
        text = name in own.categorical
        if name in stated:
            _taken(own, stated[name])
            made.append(stated[name])
        else:
            made.append(_category(name, own, most) if text else _number(name, own))
    return _ordered(made)


def declared(
    ranges: Mapping[str, Sequence[float]], categories: Mapping[str, Sequence[str]], order: Sequence[str] | None = None
) -> Preprocessor:
    """The preprocessor of declared columns, which is the same wherever it is made and reveals nothing of any row.

    A number's range is mapped to [-1, 1], and numbers beyond it lie outside; a missing one is 0 and has a feature of
    its own. A column of categories has one feature for each and one for any other, a missing value included.

    Parameters
    ----------
    ranges
        The lowest and highest ordinary value of each column of numbers.
    categories
        The categories of each other column.
    order
        The order of the columns; as they are declared if None.
    """
    made: dict[str, Number | Category] = {}
    for name, (low, high) in ranges.items():
        centre = (low + high) / 2
        made[name] = Number(name, centre, centre, (high - low) / 2, flagged=True)
    for name, values in categories.items():
        made[name] = Category(name, tuple(values), other=True)
    return _ordered([made[name] for name in order or made])


def _ordered(columns: Sequence[Number | Category]) -> Preprocessor:
    """Numbers before categories, as a ``ColumnTransformer`` with the two in this order gives them."""
    return Preprocessor(tuple(sorted(columns, key=lambda column: isinstance(column, Category))))


def _number(name: str, cells: Cells) -> Number:
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    column = cells.columns[name].reshape(-1, 1)
    imputer = SimpleImputer(strategy="median", keep_empty_features=True).fit(column)
    scaler = StandardScaler().fit(imputer.transform(column))
    fill, centre, scale = (float(one[0]) for one in (imputer.statistics_, scaler.mean_, scaler.scale_))
    return Number(name, fill, centre, scale, flagged=bool(np.isnan(column).any()))


def _category(name: str, cells: Cells, most: int) -> Category:
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=most, sparse_output=False)
    encoder.fit(cells.columns[name].reshape(-1, 1))
    (values,), (rare,) = encoder.categories_, getattr(encoder, "infrequent_categories_", [None])
    grouped = set() if rare is None else {*rare.tolist()}
    return Category(name, tuple(value for value in values.tolist() if value not in grouped), other=rare is not None)


def _taken(cells: Cells, column: Number | Category) -> np.ndarray:
    """The cells of the column, after a check that they are of its kind."""
    if column.name not in cells.columns:
        raise DataError(
            f"the rows have no column '{column.name}', which the model reads; their columns: {', '.join(cells.names)}"
        )
    values = cells.columns[column.name]
    if (values.dtype == object) != isinstance(column, Category):
        kinds = ("categories", "numbers")
        wanted, there = kinds if isinstance(column, Category) else reversed(kinds)
        raise DataError(
            f"the column '{column.name}' holds {there}, and the model reads {wanted} there; declare it in "
            f"{'data.categorical' if isinstance(column, Category) else 'data.ranges'}"
        )
    return values


def _column_from(values: dict[str, Any]) -> Number | Category:
    if "values" in values:
        made = Category(str(values["name"]), tuple(values["values"]), bool(values["other"]))
        if not all(one is None or isinstance(one, str) for one in made.values):
            raise ValueError(f"categories of '{made.name}' that are not text")
        return made
    fill, centre, scale = (float(values[key]) for key in ("fill", "centre", "scale"))
    column = Number(str(values["name"]), fill, centre, scale, flagged=bool(values["flagged"]))
    if not np.isfinite([column.fill, column.centre, column.scale]).all() or column.scale == 0:
        raise ValueError(f"numbers of '{column.name}' that are not finite, or a scale of 0")
    return column
