"""Hugging Face datasets and Flower's partitioners: the only file that imports ``datasets`` and ``flwr_datasets``.

Both are imported inside the functions, so that a run on local files does not wait for them.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.data.raw import Raw


def read_parquet(path: Path) -> Raw:
    """The columns of a parquet file.

    Raises
    ------
    DataError
        if the file is no parquet file or is damaged.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        return _raw(datasets.Dataset(pyarrow.parquet.read_table(path)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: is not a parquet file or is damaged ({error}); fetch or write the file again"
        ) from error


def is_saved(path: Path) -> bool:
    """Whether the folder was written by ``save_to_disk`` of the datasets library."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_saved(path: Path) -> dict[str, Raw]:
    """The splits of a folder written by ``save_to_disk``; a dataset without splits has the single name ``""``.

    Raises
    ------
    DataError
        if the folder is damaged.
    """
    import datasets

    try:
        return _splits(datasets.load_from_disk(str(path)))
    except Exception as error:  # what the library raises here depends on which of its files is broken
        raise DataError(
            f"{path}: the saved dataset cannot be read ({_first_line(error)}); write the folder again"
        ) from error


def read_hub(name: str, configuration: str | None = None) -> dict[str, Raw]:
    """The splits of a dataset on the Hugging Face hub, by split name. Code from the hub is never run.

    Raises
    ------
    DataError
        if there is no such dataset, it needs a configuration, or the hub cannot be reached.
    """
    import datasets

    try:
        return _splits(datasets.load_dataset(name, configuration))
    except Exception as error:  # http client, hub client and builders each have exceptions of their own
        raise DataError(
            f"data.source = 'hub:{name}{':' + configuration if configuration else ''}': cannot be loaded "
            f"({type(error).__name__}: {_first_line(error)}); check the name (hub:owner/name or "
            "hub:owner/name:configuration) "
            "and the connection, or give a local file or folder"
        ) from error


def iid_parts(order: np.ndarray, num_clients: int) -> list[np.ndarray]:
    """``order`` cut into ``num_clients`` consecutive parts of equal size (to one), by ``IidPartitioner``."""
    from flwr_datasets.partitioner import IidPartitioner

    return _parts(IidPartitioner(num_clients), {"index": order})


def dirichlet_parts(labels: np.ndarray, num_clients: int, alpha: float, min_size: int, seed: int) -> list[np.ndarray]:
    """Row numbers of every client by ``DirichletPartitioner``.

    Raises
    ------
    ValueError
        if ten draws all left some client with fewer than ``min_size`` rows.
    """
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_clients, "label", alpha=float(alpha), min_partition_size=min_size, shuffle=False, seed=seed
    )
    return _parts(partitioner, {"index": np.arange(len(labels)), "label": labels})


def pathological_parts(labels: np.ndarray, num_clients: int, classes_per_client: int, seed: int) -> list[np.ndarray]:
    """Row numbers of every client by ``PathologicalPartitioner``.

    Client ``i`` owns class ``i mod classes``; its other classes are drawn.

    Raises
    ------
    ValueError
        if a class has fewer rows than owners.
    """
    from flwr_datasets.partitioner import PathologicalPartitioner

    partitioner = PathologicalPartitioner(
        num_clients,
        "label",
        classes_per_client,
        class_assignment_mode="first-deterministic",
        shuffle=False,
        seed=seed,
    )
    return _parts(partitioner, {"index": np.arange(len(labels)), "label": labels})


def natural_parts(groups: np.ndarray) -> list[np.ndarray]:
    """Row numbers of every group in ascending order of group id, by ``NaturalIdPartitioner``."""
    from flwr_datasets.partitioner import NaturalIdPartitioner

    return _parts(NaturalIdPartitioner("group"), {"index": np.arange(len(groups)), "group": groups})


def _parts(partitioner: Any, columns: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import datasets

    # the partitioner sees labels and row numbers only, never the examples
    partitioner.dataset = datasets.Dataset.from_dict({name: column.tolist() for name, column in columns.items()})
    # every failed draw warns and the natural partitioner shows a bar; what matters reaches the user as an error
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        parts = [partitioner.load_partition(client) for client in range(partitioner.num_partitions)]
    return [np.asarray(part["index"][:], dtype=np.int64) for part in parts]


def _splits(loaded: Any) -> dict[str, Raw]:
    if isinstance(loaded, Mapping):
        return {str(name): _raw(dataset) for name, dataset in loaded.items()}
    return {"": _raw(loaded)}


def _raw(dataset: Any) -> Raw:
    import datasets

    names = {
        name: tuple(feature.names)
        for name, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }

    def read(name: str) -> list[Any]:
        if isinstance(dataset.features[name], datasets.Image):
            # kept encoded, so that a damaged image is met where its row can be named
            return list(dataset.cast_column(name, datasets.Image(decode=False))[name])
        return list(dataset[name])

    return Raw(tuple(dataset.column_names), len(dataset), read, names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]
