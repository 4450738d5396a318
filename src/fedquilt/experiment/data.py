"""Reading the data of a config and partitioning it over clients."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS, one_of, tasks_where
from fedquilt.core.types import ClientId
from fedquilt.data.holdout import carve_proxy, split_clients
from fedquilt.data.loaders import limited, load_table, published_split, require_labels, with_classes
from fedquilt.data.partition import partition
from fedquilt.data.parts import Parts, Splits
from fedquilt.data.table import Table, concatenated
from fedquilt.data.tabular import Preprocessor
from fedquilt.experiment.features import SITES, features_of, undeclared, wanted_cells
from fedquilt.experiment.prompt_checks import check_posing

NODE = "node"
"""The name of the source that each node's own config defines."""


@dataclass(frozen=True)
class AssignedRows:
    """The rows that are on this machine, and their assignment to clients.

    Attributes
    ----------
    table : the rows; None if none are here.
    test : the common test rows; None if there are none.
    splits : the training, validation and test rows of each client, as indices into ``table``.
    proxy : the rows of the server, likewise.
    names : the natural ids of the clients in the data, if it has any.
    features : how columns become features, for a model that reads tables.
    """

    table: Table | None
    test: Table | None
    splits: Splits
    proxy: np.ndarray
    names: Mapping[ClientId, str] = field(default_factory=dict)
    features: Preprocessor | None = None


def read(config: Config, rng: Rng, here: Collection[ClientId] | None = None) -> tuple[Table | None, Table | None]:
    """The rows to partition, and the common test rows, or None; both are checked to fit the task.

    ``here`` are the clients whose rows may be read if each has its own source, None for all.
    """
    data = config.data
    if config.partition.scheme == SITES:
        table, test = _of_sites(config, rng, range(config.partition.num_clients) if here is None else here), None
    else:
        _refuse_own_sources(config)
        table, test = published_split(load_table(data.source, **columns_of(config)))
        table = limited(table, data.limit, rng.child("data"))
        check_kind(config, table, "source", data.source)
        table = _as_named(config, table, data.source)
    if data.test is not None:
        rows, held_out = published_split(load_table(data.test, **columns_of(config, table)))
        test = rows if held_out is None else held_out  # the test rows must not be rows that others train on
    if test is None and data.test_limit is not None and here is None:
        raise ConfigError(f"data.test_limit = {data.test_limit}: there is no common test set; leave it out")
    if test is not None:
        test = limited(test, data.test_limit, rng.child("test data"))
        where = data.test or data.source
        check_kind(config, test, "test" if data.test else "source", where)
        if TASKS[config.model.task].has_classes:
            classes = data.classes or (table.classes if table else ())
            test = with_classes(test, classes, f"data.test = '{where}'")
    return table, test


def _of_sites(config: Config, rng: Rng, here: Collection[ClientId]) -> Table | None:
    """The rows of the sites ``here``, one after another; the group of a row is its site's position in ``here``."""
    data, problems = config.data, []
    if "{client}" not in data.source and data.source != NODE and len(here) != 1:
        problems.append(
            f"data.source = '{data.source}': partition.scheme = 'sites' needs a source for each client: a path with "
            "'{client}' in it, as in 'site-{client}.csv', or 'node' for the source in each node's own config"
        )
    if data.classes is None and TASKS[config.model.task].has_classes:
        problems.append(
            "data.classes: missing; with partition.scheme = 'sites' no party sees all classes, so name them, as in "
            "classes = ['cat', 'dog']"
        )
    if TASKS[config.model.task].reads == "table":
        problems += undeclared(data)
    if data.proxy:
        problems.append(
            f"data.proxy = {data.proxy}: with partition.scheme = 'sites' the server has no rows; leave it out"
        )
    if data.source == NODE and len(here) > 0:
        problems.append(
            "data.source = 'node': each client's rows are on its node; give each node its source "
            "(--node-config 'data=...'), or for a run on this machine a path with '{client}' in it"
        )
    if problems:
        raise ConfigError(problems)
    tables = []
    for client in here:
        source = data.source.replace("{client}", str(client))
        table, held_out = published_split(load_table(source, **columns_of(config)))
        if held_out is not None:
            raise DataError(
                f"data.source = '{source}': holds {len(held_out)} test rows besides {len(table)} training rows, and a "
                "site's rows are split by partition.test_fraction; name a file of training rows only"
            )
        table = limited(table, data.limit, rng.child("data", client))
        check_kind(config, table, "source", source)
        tables.append(_as_named(config, table, source))
    if not tables:
        return None
    sizes = torch.tensor([len(table) for table in tables])
    return replace(concatenated(tables), groups=torch.arange(len(tables)).repeat_interleave(sizes))


def _refuse_own_sources(config: Config) -> None:
    source, scheme = config.data.source, config.partition.scheme
    if "{client}" in source or source == NODE:
        raise ConfigError(
            f"data.source = '{source}': is a source for each client, and partition.scheme = '{scheme}' partitions one "
            "source; set partition.scheme = 'sites'"
        )


def _as_named(config: Config, table: Table, source: str) -> Table:
    """The table with its labels numbered in the order of ``data.classes``, if that is set."""
    classes = config.data.classes
    if classes is None or not TASKS[config.model.task].has_classes:
        return table
    return with_classes(table, classes, f"data.source = '{source}'", "data.classes does not name")


def columns_of(config: Config, like: Table | None = None) -> dict[str, Any]:
    """The arguments of ``load_table`` for the data of a config; columns of cells are of the kinds that ``like`` has."""
    keys = {"text", "pair", "label", "target", "image", "group", "format", "prompt", "words", "on_missing"}
    return config.data.model_dump(include=keys) | {
        "objects": config.objects,
        "cells": wanted_cells(config, like),
    }


def check_kind(config: Config, table: Table, key: str, source: str) -> None:
    """Raise ConfigError or DataError if the table lacks what the task needs: images, text or cells, labels, answers."""
    task = TASKS[config.model.task]
    if table.kind != task.reads:
        words = {"image": "images", "text": "text", "table": "columns of numbers and categories"}
        fitting = one_of(tasks_where(lambda other: other.reads == table.kind))
        raise ConfigError(
            f"data.{key} = '{source}': holds {words[table.kind]}, and model.task = '{config.model.task}' needs "
            f"{words[task.reads]}; set model.task to {fitting} with a model for it, or choose other data"
        )
    if task.has_classes:
        require_labels(table, source)
    check_posing(config, table, key, source)


def assign(
    config: Config, table: Table | None, test: Table | None, rng: Rng, here: Collection[ClientId] | None = None
) -> AssignedRows:
    """Assign rows: proxy rows to the server, then training, validation and test rows to each client.

    The assignment depends only on the seed, [data] and [partition], so all methods of a comparison share it. If each
    client has its own source, that of a client depends only on its own rows.

    Parameters
    ----------
    config
        The config with [data] and [partition].
    table, test
        The rows to assign, and the common test rows; None if there are none here.
    rng
        The random stream of proxy, partition and splits.
    here
        The clients whose rows are in ``table`` if each has its own source; None for all.
    """
    data, wanted = config.data, config.partition
    if table is None:
        return AssignedRows(None, test, Splits((), ()), np.empty(0, dtype=np.int64), features=features_of(config, None))
    labels = None if table.labels is None else table.labels.numpy()
    ids = range(wanted.num_clients) if here is None or wanted.scheme != SITES else tuple(here)
    parts = partition(
        wanted.scheme,
        labels,
        len(ids),
        rng.child("partition"),
        groups=None if table.groups is None else table.groups.numpy(),
        num_examples=len(table),
        **wanted.settings,
    )
    proxy, parts = carve_proxy(parts, labels, data.proxy, rng.child("proxy"))
    splits = split_clients(
        ids,
        parts,
        labels,
        rng.child("split"),
        test_fraction=wanted.test_fraction,
        validation_fraction=wanted.validation_fraction,
    )
    names = dict(zip(ids, _names(table, parts), strict=True)) if wanted.scheme == "natural" else {}
    return AssignedRows(table, test, splits, proxy, names, features_of(config, table, splits.train_rows()))


def _names(table: Table, parts: Parts) -> list[str]:
    """The natural id of each client in the data; all rows of a client have the same."""
    assert table.groups is not None, "a natural partition needs rows with natural ids"
    ids = table.groups[torch.from_numpy(parts.rows[parts.ends - 1])].tolist()
    return [table.group_names[id] if table.group_names else str(id) for id in ids]


def table_here(config: Config) -> Table | None:
    """The rows of the config's source if they are on this machine, for a plan, which does not need them."""
    if config.data.source.startswith("hub:") or config.partition.scheme == SITES:
        return None
    try:
        return limited(published_split(load_table(config.data.source, **columns_of(config)))[0], config.data.limit)
    except DataError:
        return None
