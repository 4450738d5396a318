"""Hugging Face data sets.

Only this module imports ``datasets``, and only inside its functions, so that a run on local files starts without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.data.limits import MOST_ROWS, refuse_bomb, refuse_large
from fedquilt.data.readers.raw_columns import Raw, of_one_file

_BATCH = 1024  # rows unpacked at once, since a few bytes of a file may unpack to any size


def read_parquet(path: Path) -> Raw:
    """The columns of a parquet file.

    Raises
    ------
    DataError
        if the file is not a parquet file, is damaged, or unpacks to more than fits in memory.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            about = file.metadata
            groups = [about.row_group(number) for number in range(about.num_row_groups)]
            refuse_bomb(path, path.stat().st_size, sum(group.total_byte_size for group in groups))
            if about.num_rows > MOST_ROWS:
                raise DataError(f"{path}: has {about.num_rows:,} rows; at most {MOST_ROWS:,} are allowed; split it")
            batches, num_bytes = [], 0
            for batch in file.iter_batches(_BATCH):
                num_bytes += batch.nbytes
                refuse_large(path, num_bytes)
                batches.append(batch)
            table = pyarrow.Table.from_batches(batches, file.schema_arrow)
        table.validate(full=True)
        return _raw(datasets.Dataset(table), str(path))
    except DataError:
        raise
    except Exception as error:  # pyarrow and datasets each raise exceptions of their own for broken files
        raise DataError(
            f"{path}: is not a parquet file or is damaged ({_first_line(error)}); download or write the file again"
        ) from error


def by_split(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The files of a folder, relative to it, by split; by the rules of ``datasets.load_dataset``.

    The first of these that applies decides: the front matter of ``README.md``, names of the form
    ``data/NAME-00000-of-00001.*``, the names of folders, the names of files (``train``, ``test``, ``validation`` and
    their synonyms as whole words). Files without a split are then left out. If none applies, all files are the train
    split. Different from ``load_dataset``, case is ignored: ``Train`` is ``train``.

    Raises
    ------
    DataError
        if a file would belong to two splits, or the dataset card names several configurations.
    """
    from datasets import data_files as rules

    shards = re.compile(r"data/(\w+(?:\.\w+)*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")
    found: dict[str, list[str]] = {}
    for name in names:
        if match := shards.fullmatch(name):
            found.setdefault(match[1], []).append(name)
    stated = _of_card(folder)
    every = [stated] if stated else [] if found else [*rules.ALL_DEFAULT_PATTERNS]
    for patterns in every:
        found = {}
        for split, wanted in patterns.items():
            signs = [_sign(pattern if stated else pattern.lower()) for pattern in wanted]
            if own := [
                name for name in names if any(sign.fullmatch(name if stated else name.lower()) for sign in signs)
            ]:
                found[str(split)] = own
        if found:
            break
    for name in names:
        if len(splits := [split for split, own in found.items() if name in own]) > 1:
            raise DataError(
                f"{folder / name}: its name fits the splits {' and '.join(splits)}; give it a name that fits only one, "
                "or name one file in data.source and another in data.test"
            )
    return found


def _sign(pattern: str) -> re.Pattern[str]:
    """A glob pattern of the datasets library as a regular expression; ``**`` matches any path."""
    words = {"**/": "(?:.+/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    return re.compile("".join(words.get(part) or (part if part[:1] == "[" else re.escape(part)) for part in parts))


def _of_card(folder: Path) -> dict[str, list[str]]:
    """The file patterns of each split in the front matter of the folder's README.md; empty if there are none."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    from datasets.load import DatasetCard
    from datasets.utils.metadata import MetadataConfigs

    try:
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data)
    except Exception as error:  # a README that is not a dataset card
        raise DataError(
            f"{card}: its front matter cannot be read ({_first_line(error)}); repair or remove it"
        ) from error
    by_name = {name: config["data_files"] for name, config in configs.items() if config.get("data_files")}
    if len(by_name) > 1:
        raise DataError(
            f"{card}: names the configurations {', '.join(by_name)}; give the files of one of them as data.source, or "
            "a folder that holds only these"
        )
    (files,) = by_name.values() or ({},)
    if isinstance(files, str):
        files = [{"split": "train", "path": files}]
    if isinstance(files, list):
        files = {
            str(file["split"]): file["path"] if isinstance(file["path"], list) else [file["path"]]
            for file in (one if isinstance(one, dict) else {"split": "train", "path": one} for one in files)
        }
    return dict(files)


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
        loaded = datasets.load_from_disk(str(path))
        for dataset in loaded.values() if isinstance(loaded, Mapping) else [loaded]:
            dataset.data.table.validate(full=True)  # the files are memory-mapped without a check
        return splits_of(loaded, str(path))
    except Exception as error:  # the exception depends on which file is broken
        raise DataError(
            f"{path}: the saved dataset cannot be read ({_first_line(error)}); write the folder again"
        ) from error


def read_hub(name: str, configuration: str | None = None) -> dict[str, Raw]:
    """The splits of a data set on the Hugging Face hub, by name; code from the hub is never run.

    Raises
    ------
    DataError
        if there is no such data set, it needs a configuration, or the hub cannot be reached.
    """
    import datasets

    try:
        return splits_of(datasets.load_dataset(name, configuration), f"hub:{name}")
    except Exception as error:  # the http client, the hub client and the builders each raise exceptions of their own
        raise DataError(
            f"data.source = 'hub:{name}{':' + configuration if configuration else ''}': cannot be loaded "
            f"({type(error).__name__}: {_first_line(error)}); check the name (hub:owner/name or "
            "hub:owner/name:configuration) "
            "and the connection, or give a local file or folder"
        ) from error


def splits_of(loaded: Any, where: str) -> dict[str, Raw]:
    """The columns of each split of a dataset that the library has loaded; ``""`` where it has no splits."""
    if isinstance(loaded, Mapping):
        return {str(name): _raw(dataset, f"{where} ({name})") for name, dataset in loaded.items()}
    return {"": _raw(loaded, where)}


def _raw(dataset: Any, where: str) -> Raw:
    import datasets

    columns = dataset.column_names
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise DataError(f"{where}: the column '{twice}' occurs twice; give every column a name of its own")
    names = {
        name: tuple(feature.names)
        for name, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }

    def read(name: str) -> list[Any]:
        try:
            if isinstance(dataset.features[name], datasets.Image):
                # kept encoded, so that a damaged image is found where its row can be named
                return list(dataset.cast_column(name, datasets.Image(decode=False))[name])
            return list(dataset[name])
        except Exception as error:  # each kind of column has a decoder with exceptions of its own
            raise DataError(
                f"{where}: the column '{name}' cannot be read ({_first_line(error)}); write the data again"
            ) from error

    origin = of_one_file(where, "row", np.arange(1, len(dataset) + 1))
    return Raw(tuple(columns), len(dataset), read, origin, names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
