"""Parties of a vertical federation with files of their own, whose rows are aligned by ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import ClientId
from fedquilt.data.cells import Cells, Wanted
from fedquilt.data.ids import id_list, read_key
from fedquilt.data.loaders import load_table, with_classes
from fedquilt.data.table import Table
from fedquilt.data.tabular import Number, Preprocessor
from fedquilt.data.vertical.deal import Dealing
from fedquilt.data.vertical.views import seen_of
from fedquilt.experiment.data import NODE, columns_of
from fedquilt.experiment.data_of_groups import naming_groups
from fedquilt.experiment.vertical_rows import UNKNOWN, Held, Holding

ELSEWHERE = Preprocessor((Number("of a file elsewhere", 0.0, 0.0, 1.0, flagged=False),))
"""Stands in for the columns of a file that is not in this process: nobody else knows how wide they are."""

PARTY = "{party}"
"""Stands for a party's label in ``data.source``."""

_NOTHING = np.empty(0, dtype=np.int64)
_EMPTY = Holding(None, _NOTHING, _NOTHING, _NOTHING, _NOTHING)


def files_of(
    config: Config, parts: Sequence[Part], dealing: Dealing, here: Collection[ClientId] | None, *, on_site: bool
) -> Held:
    """Read the files of the parties in this process.

    Parameters
    ----------
    config, parts, dealing
        The run file, its parties, the active one last, and the settings of [partition].
    here, on_site
        The passive parties in this process, None for all, and whether it is one of them rather than the active one's.

    Raises
    ------
    FedquiltError
        ConfigError or DataError.
    """
    if problems := _problems(config, parts, here):
        raise ConfigError(problems)
    classes, holdings = config.data.classes or (), []
    for part in parts:
        absent = on_site if part.is_server else here is not None and part.first not in here
        with naming_groups(part):
            holdings.append(_EMPTY if absent else _read(part, dealing, classes))
    active = holdings[-1]
    if active.table is not None and (active.labels == UNKNOWN).any():
        raise DataError(
            f"party '{parts[-1].label}': its file has no column '{config.data.label}', and the active party knows the "
            "labels; set data.label, or active = true for the party that has them"
        )
    return Held(holdings, classes, torch.from_numpy(active.labels), torch.zeros(0, dtype=torch.long))


def halves(test_fraction: float, rng: Rng, count: int) -> tuple[Tensor, Tensor]:
    """The places of the common rows that are learned, and of those that are predicted, the same in every party."""
    order = torch.randperm(count, generator=rng.torch())
    shown = max(1, round(test_fraction * count)) if test_fraction and count > 1 else 0
    return order[shown:].sort().values, order[:shown].sort().values


def key_of(dealing: Dealing) -> bytes:
    """The key that all parties share; empty for an alignment without one."""
    return b"" if dealing.key_file is None else read_key(dealing.key_file)


def _problems(config: Config, parts: Sequence[Part], here: Collection[ClientId] | None) -> list[str]:
    data, problems = config.data, []
    several = here is None or len(here) > 1
    if PARTY not in data.source and several:
        problems.append(
            f"data.source = '{data.source}': with partition.id every party has a file of its own: give a path with "
            f"'{PARTY}' in it for the party's label, as in './{PARTY}.csv'"
        )
    if data.classes is None:
        problems.append("data.classes: missing; with partition.id no party but the active one sees all classes")
    for key in ("test", "limit", "test_limit"):
        if getattr(data, key) is not None:
            problems.append(f"data.{key}: no effect with partition.id, where rows are those of the files; leave it out")
    if data.on_missing != "error":
        problems.append(
            f"data.on_missing = '{data.on_missing}': with partition.id rows are found by their ids, and each party "
            "would leave out others; remove them from the files, and leave it out"
        )
    for place, part in enumerate(parts):
        party = part.party
        if party is not None and (party.classes, party.unaligned, party.labelled) != (None, None, True):
            problems.append(
                f"parties[{place}]: classes, unaligned and labelled deal the rows of one source, and with partition.id "
                "every party has a file of its own; leave them out"
            )
    return problems


def _read(part: Part, dealing: Dealing, classes: Sequence[str]) -> Holding:
    """A party's file: what it sees of its rows, their ids, and their labels if it has them."""
    config, party, label = part.config, part.party, part.config.data.label
    assert party is not None
    assert dealing.id is not None
    source = config.data.source.replace(PARTY, party.label)
    if source == NODE:
        raise ConfigError("data.source = 'node': the party's file is on its node; give it --node-config 'data=...'")
    columns = columns_of(config)
    if TASKS[config.model.task].reads == "table":
        columns["cells"] = Wanted(None, (*config.data.categorical, *config.data.categories), tuple(config.data.ranges))
    table = _without(load_table(source, **columns), dealing.id)
    if table.labels is not None:
        table = with_classes(table, classes, f"data.source = '{source}'", "data.classes does not name")
    labels = np.full(len(table), UNKNOWN) if table.labels is None else table.labels.numpy()
    ids = ids_of(source, dealing.id, fold_case=dealing.fold_case, label=label)
    if len(ids) != len(table):
        raise DataError(f"data.source = '{source}': has {len(ids)} ids for {len(table)} rows")
    every = np.arange(len(table))
    return Holding(seen_of(table, party.view, party.columns), labels, _NOTHING, every, _NOTHING, ids=ids)


def ids_of(
    source: str,
    column: str,
    *,
    fold_case: bool,
    label: str | None = None,
    objects: Mapping[str, Any] | None = None,
    key: str = "",
) -> tuple[str, ...]:
    """The ids of a file's rows, read as text.

    Parameters
    ----------
    source, column
        The file, and its column of ids.
    fold_case
        Whether upper and lower case are the same.
    label
        The column of labels, if the file may have one.
    objects
        Sources that are objects of the calling program.
    key
        What names file and column, for errors; ``data.source`` and ``partition.id`` if left out.

    Raises
    ------
    DataError
        if they cannot be read, or are not one for each row, each another.
    """
    try:
        found = load_table(source, cells=Wanted((column,), (column,)), label=label, objects=objects or {}).inputs
        assert isinstance(found, Cells)
        return id_list(found.columns[column].tolist(), source, column, fold_case=fold_case)
    except DataError as error:
        words = str(error).removeprefix(f"data.columns = ['{column}']: ").removeprefix(f"{source}: ")
        where = key or f"data.source = '{source}', partition.id = '{column}'"
        raise DataError(f"{where}: {words}") from error


def _without(table: Table, column: str) -> Table:
    """The table without the column of ids, which says nothing of a row."""
    if not isinstance(table.inputs, Cells) or column not in table.inputs.names:
        return table
    return replace(table, inputs=table.inputs.of([name for name in table.inputs.names if name != column]))
