"""Columns from the location that a source names: a file, a folder, the hub, or what comes with fedquilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedquilt.core.errors import DataError, suggestion
from fedquilt.core.types import IN_MEMORY
from fedquilt.data.readers import archives, delimited, files, hub, spreadsheet
from fedquilt.data.readers.bundled import read_bundled
from fedquilt.data.readers.raw_columns import Origin, Raw, joined

Reader = Callable[[Path, set[str]], Raw]
"""``reader(path, wanted)``: a file's columns; ``wanted`` are those that may be asked for."""

READERS: dict[str, Reader] = {
    ".npz": lambda path, wanted: files.read_npz(path),
    ".tsv": delimited.read_tsv,
    ".csv": lambda path, wanted: delimited.read_csv(path),
    ".jsonl": lambda path, wanted: files.read_jsonl(path),
    ".parquet": lambda path, wanted: hub.read_parquet(path),
    ".json": lambda path, wanted: files.read_json(path),
    ".xlsx": lambda path, wanted: _one_sheet(path),
}
"""The types of file that can be read, by the ends of their names. A new format is a row here."""

READERS |= {f"{end}.gz": READERS[end] for end in (".tsv", ".csv", ".jsonl", ".json")}

FILE_TYPES = tuple(READERS)
PICTURE_TYPES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")


def read_location(location: str, source: str, wanted: set[str]) -> dict[str, Raw]:
    """The columns of each split that lies at ``location``, by its name; ``""`` where there is one without a name.

    ``source`` is how the user wrote it, for messages; ``wanted`` are the columns that may be asked for.

    Raises
    ------
    DataError
        if there is nothing, or what is there cannot be read.
    """
    if (found := read_bundled(location, source)) is not None:
        return found
    if location.startswith("hub:"):
        name, _, configuration = location.removeprefix("hub:").partition(":")
        return hub.read_hub(name, configuration or None)
    if location.startswith(IN_MEMORY):
        raise DataError(
            f"data.source = '{source}': is an object of the Python program that began the run; give it again: "
            "fedquilt.open_run(folder, data=...)"
        )
    path = Path(location)
    if path.is_dir():
        return _of_folder(path, source, wanted)
    if not path.exists():
        raise DataError(f"data.source = '{source}': there is no file or folder {path.absolute()}{_neighbours(path)}")
    if archives.is_archive(path):
        return archives.read_archive(path, lambda folder: _of_folder(folder, source, wanted))
    return spreadsheet.read_xlsx(path) if kind_of(path) == ".xlsx" else {"": _file(path, wanted)}


def _of_folder(path: Path, source: str, wanted: set[str]) -> dict[str, Raw]:
    """The columns of a folder."""
    return hub.read_saved(path) if hub.is_saved(path) else _folder(path, source, wanted)


def kind_of(path: Path) -> str:
    """The end of a file's name that says its type, in lower case: ``.csv``, or ``.csv.gz``."""
    end = path.suffix.lower()
    return f"{Path(path.stem).suffix.lower()}{end}" if end == ".gz" else end


def _one_sheet(path: Path) -> Raw:
    sheets = spreadsheet.read_xlsx(path)
    if len(sheets) > 1:
        raise DataError(
            f"{path}: has several sheets ({', '.join(sheets)}), and in a folder every file must be one table; name the "
            f"file, and the sheet behind it, as in {path.name}@{next(iter(sheets))}"
        )
    return next(iter(sheets.values()))


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return suggestion(path.name, sorted(neighbour.name for neighbour in path.parent.iterdir()))


def _file(path: Path, wanted: set[str]) -> Raw:
    kind = kind_of(path)
    if kind not in READERS:
        allowed = ", ".join((*FILE_TYPES, *archives.ENDS))
        raise DataError(f"{path}: files of type '{kind}' cannot be read; allowed are {allowed}")
    return READERS[kind](path, wanted)


def _folder(path: Path, source: str, wanted: set[str]) -> dict[str, Raw]:
    """The splits of a folder of files of rows, or of pictures in a folder for each class."""
    inside = [file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file()]
    seen = [file for file in inside if not any(part.startswith((".", "__")) for part in file.parts)]
    found = [file for file in seen if kind_of(file) in FILE_TYPES]
    # beside other files, JSON tells about the data
    found = [file for file in found if kind_of(file) not in (".json", ".json.gz")] or found
    pictures = not found
    if pictures:
        found = [file for file in seen if file.suffix.lower() in PICTURE_TYPES]
    splits = hub.by_split(path, [file.as_posix() for file in found]) if found else {}
    if not splits:
        raise DataError(
            f"data.source = '{source}': the folder holds no data; allowed are files of type {', '.join(FILE_TYPES)} "
            "(named train.*, test.*, validation.* where they are splits), a folder of pictures for each class, or a "
            "dataset written by save_to_disk"
        )
    if pictures:
        return _pictures(path, splits)
    kinds = sorted({kind_of(Path(name)) for names in splits.values() for name in names})
    if len(kinds) > 1:
        raise DataError(
            f"data.source = '{source}': the folder holds files of the types {', '.join(kinds)}, which may be the same "
            "rows twice; name one file, or a folder of one type"
        )
    return {split: joined([_file(path / name, wanted) for name in names], source) for split, names in splits.items()}


def _pictures(path: Path, splits: dict[str, list[str]]) -> dict[str, Raw]:
    """Pictures whose class is the name of their folder, where they lie in several folders of one depth."""
    every = [Path(name) for names in splits.values() for name in names]
    labelled = len({file.parent.name for file in every}) > 1 and len({len(file.parts) for file in every}) == 1
    made = {}
    for split, names in splits.items():
        columns: dict[str, list[object]] = {"image": [str(path / name) for name in names]}
        if labelled:
            columns["label"] = [Path(name).parent.name for name in names]
        origin = Origin(
            tuple((str(path / name), "picture") for name in names),
            np.arange(len(names), dtype=np.int32),
            np.ones(len(names), dtype=np.int64),
        )
        made[split] = Raw(tuple(columns), len(names), columns.__getitem__, origin)
    return made
