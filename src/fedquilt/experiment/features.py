"""The preprocessing of columns that a config asks for: declared in the run file, or fitted on training rows."""

from __future__ import annotations

import numpy as np

from fedquilt.config.data import Data
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.tasks import TASKS
from fedquilt.data.cells import Cells, Wanted
from fedquilt.data.table import Table
from fedquilt.data.tabular import Preprocessor, declared, fit

SITES = "sites"
"""The partition scheme in which every client has its own source."""


def wanted_cells(config: Config, like: Table | None = None) -> Wanted | None:
    """Which columns are read, and as what; None for a model that reads no tables.

    Columns that hold categories in the table ``like`` hold categories here too.
    """
    data = config.data
    if TASKS[config.model.task].reads != "table":
        return None
    known = like.inputs.categorical if like is not None and isinstance(like.inputs, Cells) else ()
    columns = _declared_columns(data) if config.partition.scheme == SITES else data.columns
    return Wanted(columns, tuple(dict.fromkeys([*data.categorical, *data.categories, *known])), tuple(data.ranges))


def features_of(config: Config, table: Table | None, rows: np.ndarray | None = None) -> Preprocessor | None:
    """The preprocessing of the columns that the config's model reads; None for a model that reads no tables.

    Parameters
    ----------
    config
        The config; with the scheme ``sites`` it declares every column.
    table
        The rows, if they are here.
    rows
        The numbers of the rows to fit on; all for None.

    Raises
    ------
    FedquiltError
        ConfigError if columns are not declared that must be, DataError if rows do not hold what is declared.
    """
    data = config.data
    if TASKS[config.model.task].reads != "table":
        return None
    if config.partition.scheme == SITES:
        if problems := undeclared(data):
            raise ConfigError(problems)
        return declared(data.ranges, data.categories, _declared_columns(data))
    if table is None or not isinstance(table.inputs, Cells):
        raise DataError(
            f"data.source = '{data.source}': its rows are not here, and a model of tables is as wide as they make it"
        )
    return fit(table.inputs, rows, ranges=data.ranges, categories=data.categories)


def undeclared(data: Data) -> list[str]:
    """Problems of columns without a range and categories, where every client has its own source."""
    named = (*(data.columns or ()), *data.categorical)
    lacking = [name for name in dict.fromkeys(named) if name not in (*data.ranges, *data.categories)]
    if not lacking and (data.ranges or data.categories):
        return []
    which = f"of {', '.join(map(repr, lacking))} nothing is declared" if lacking else "no column is declared"
    problem = (
        f"data.ranges, data.categories: {which}; with partition.scheme = 'sites' no party sees all rows, so scales and "
        "categories cannot be learned from them: give every column of numbers its lowest and highest ordinary value, "
        "as in ranges = {age = [0, 100]}, and every other its categories, as in categories = {sex = ['f', 'm']}"
    )
    return [problem]


def refuse_idle_columns(data: Data, name: str, *, keeps: bool) -> None:
    """Raise ConfigError if columns are declared, and the model called ``name`` ``keeps`` a preprocessing of its own."""
    idle = [f"data.{key} = {value}" for key in ("ranges", "categories") if (value := getattr(data, key))]
    if keeps and idle:
        raise ConfigError(
            f"{' and '.join(idle)}: no effect with model.name = '{name}', which was saved with its own ranges and "
            "categories; leave it out"
        )


def _declared_columns(data: Data) -> tuple[str, ...]:
    return data.columns or (*data.ranges, *data.categories)
