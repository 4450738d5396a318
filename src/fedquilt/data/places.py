"""From the place that a source names, a file, a folder, the hub, to columns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedquilt.core.errors import DataError, suggestion
from fedquilt.data import files, hub
from fedquilt.data.raw import Raw, from_columns, joined

FILE_TYPES = (".npz", ".tsv", ".csv", ".jsonl", ".parquet", ".json")
SKLEARN_TABLES = ("breast_cancer", "diabetes", "iris", "linnerud", "wine")  # bundled, but rows of plain numbers
SPLIT_NAMES = {"train": "train", "test": "test", "dev": "validation", "val": "validation", "valid": "validation"}


def read_place(place: str, source: str, wanted: set[str]) -> dict[str, Raw]:
    """The columns of each split that lies at ``place``, by its name; ``""`` where there is one without a name.

    ``source`` is how the user wrote it, for messages; ``wanted`` are the columns that may be asked for.

    Raises
    ------
    DataError
        if there is nothing, or what is there cannot be read.
    """
    if place.startswith("sklearn:"):
        return {"": _sklearn(place.removeprefix("sklearn:"), source)}
    if place.startswith("hub:"):
        name, _, configuration = place.removeprefix("hub:").partition(":")
        return hub.read_hub(name, configuration or None)
    path = Path(place)
    if path.is_dir():
        return hub.read_saved(path) if hub.is_saved(path) else _folder(path, source, wanted)
    if not path.exists():
        raise DataError(f"data.source = '{source}': there is no file or folder {path.absolute()}{_neighbours(path)}")
    return {"": _file(path, wanted)}


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return suggestion(path.name, sorted(neighbour.name for neighbour in path.parent.iterdir()))


def _file(path: Path, wanted: set[str]) -> Raw:
    match path.suffix.lower():
        case ".npz":
            return files.read_npz(path)
        case ".tsv":
            return files.read_tsv(path, wanted)
        case ".csv":
            return files.read_csv(path)
        case ".jsonl":
            return files.read_jsonl(path)
        case ".json":
            return files.read_json(path)
        case ".parquet":
            return hub.read_parquet(path)
        case suffix:
            raise DataError(f"{path}: files of type '{suffix}' cannot be read; allowed are {', '.join(FILE_TYPES)}")


def _folder(path: Path, source: str, wanted: set[str]) -> dict[str, Raw]:
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in FILE_TYPES and file.is_file())
    # beside other files, JSON tells about the data
    found = [file for file in found if file.suffix.lower() != ".json"] or found
    if not found:
        raise DataError(
            f"data.source = '{source}': the folder holds no data; allowed are files of type {', '.join(FILE_TYPES)} "
            "(named train.*, test.*, validation.* where they are splits) or a dataset written by save_to_disk"
        )
    parts: dict[str, list[Raw]] = {}
    for file in found:
        parts.setdefault(_split_name(file), []).append(_file(file, wanted))
    return {name: joined(raws, source) for name, raws in parts.items()}


def _split_name(file: Path) -> str:
    word = re.split(r"[-_.]", file.stem.lower(), maxsplit=1)[0]
    return SPLIT_NAMES.get(word, "validation" if word == "validation" else "")


def _sklearn(name: str, source: str) -> Raw:
    from sklearn import datasets as bundled

    if name in SKLEARN_TABLES:
        raise DataError(
            f"data.source = '{source}': {name} holds rows of numbers, neither images nor text; of scikit-learn's "
            "bundled sets "
            "only sklearn:digits can be used"
        )
    if name != "digits":
        raise DataError(
            f"data.source = '{source}': there is no such set{suggestion(name, ['digits'])}; of scikit-learn's "
            "bundled sets only "
            "sklearn:digits can be used"
        )
    digits = bundled.load_digits()
    # 8x8 counts in 0..16
    return from_columns({"image": np.round(digits.images * (255 / 16)).astype(np.uint8), "label": digits.target})
