"""From a config's [data] and [partition] to who holds which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Profile
from fedquilt.data.loaders import limited, load_table, published_split, require_labels, with_classes
from fedquilt.data.partition import partition
from fedquilt.data.split import Shares, carve_proxy, label_counts, split_clients, split_digest
from fedquilt.data.table import Table


@dataclass(frozen=True)
class Dealt:
    """The rows of a federation: the table, the separate test table if there is one, and who holds which rows."""

    table: Table
    test: Table | None
    splits: tuple[Shares, ...]
    proxy: np.ndarray


def read(config: Config, rng: Rng) -> tuple[Table, Table | None]:
    """The rows that are dealt out, and the separate test rows or None; of the task's kind, and labelled."""
    data = config.data
    table, test = published_split(load_table(data.source, **_columns(config)))
    if data.test is not None:
        test = load_table(data.test, **_columns(config))
    table = limited(table, data.limit, rng.child("data"))
    _check_kind(config, table, "source", data.source)
    if test is not None:
        test = limited(test, data.test_limit, rng.child("test data"))
        where = data.test or data.source
        _check_kind(config, test, "test" if data.test else "source", where)
        if config.model.task != "causal-lm":
            test = with_classes(test, table.classes, where)
    return table, test


def _columns(config: Config) -> dict[str, Any]:
    return config.data.model_dump(include={"text", "pair", "label", "target", "image", "group"})


def _check_kind(config: Config, table: Table, key: str, source: str) -> None:
    """Nothing, if the table holds what the task needs: images or text, and labels for a classifier."""
    task = config.model.task
    wanted = "image" if task == "image-classification" else "text"
    if table.kind != wanted:
        words = {"image": "images", "text": "text"}
        fitting = "image-classification" if table.kind == "image" else "sequence-classification' or 'causal-lm"
        raise ConfigError(
            f"data.{key} = '{source}': holds {words[table.kind]}, and model.task = '{task}' needs {words[wanted]}; "
            f"set model.task to '{fitting}' with a model for it, or choose other data"
        )
    if task != "causal-lm":
        require_labels(table, source)


def deal(config: Config, table: Table, test: Table | None, rng: Rng) -> Dealt:
    """The rows dealt: proxy rows for the server, then each client's train, validation and test rows.

    The split depends on the seed and on [data] and [partition] alone, so all methods of a comparison share it.
    """
    data, wanted = config.data, config.partition
    labels = None if table.labels is None else table.labels.numpy()
    parts = partition(
        wanted.scheme,
        labels,
        wanted.num_clients,
        rng.child("partition"),
        groups=None if table.groups is None else table.groups.numpy(),
        num_examples=len(table),
        **wanted.settings,
    )
    proxy, parts = carve_proxy(parts, labels, data.proxy, rng.child("proxy"))
    splits = split_clients(
        parts,
        labels,
        rng.child("split"),
        test_fraction=wanted.test_fraction,
        validation_fraction=wanted.validation_fraction,
    )
    return Dealt(table, test, splits, proxy)


def num_classes_here(config: Config) -> int | None:
    """How many classes the data has, if it is on this machine; None for a language model, or to keep a model's head."""
    if config.model.task == "causal-lm" or config.data.source.startswith("hub:"):
        return None
    try:
        return len(load_table(config.data.source, **_columns(config)).classes) or None
    except DataError:  # a plan may be made where the data is not
        return None


def partition_record(dealt: Dealt, profiles: Sequence[Profile]) -> dict[str, Any]:
    """Who has which rows, and how many of each class: what a run keeps as ``partition.json``."""
    labels = None if dealt.table.labels is None else dealt.table.labels.numpy()
    counts = label_counts([split.train for split in dealt.splits], labels, dealt.table.classes)
    return {
        "digest": split_digest(dealt.splits, dealt.proxy),
        "classes": list(dealt.table.classes),
        "proxy": dealt.proxy.tolist(),
        "clients": [
            {
                "id": profile.id,
                "architecture": profile.architecture,
                "budget": profile.budget.layers,
                "task": profile.task,
                "train": split.train.tolist(),
                "validation": split.validation.tolist(),
                "test": split.test.tolist(),
                "labels": count,
            }
            for profile, split, count in zip(profiles, dealt.splits, counts, strict=True)
        ],
    }
