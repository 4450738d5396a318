"""From a source (a word in the run file) to a table."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedquilt.core.errors import DataError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.data.bad_rows import OnMissing, Troubles
from fedquilt.data.cells import Wanted
from fedquilt.data.classes import matched
from fedquilt.data.interpretation import table_of, table_of_cells
from fedquilt.data.prompts import placeholders
from fedquilt.data.readers.by_location import read_location
from fedquilt.data.readers.raw_columns import Raw, joined
from fedquilt.data.synthetic.arithmetic_source import PREFIX, arithmetic_source
from fedquilt.data.table import Table


def load_table(
    source: str,
    *,
    split: str | None = None,
    text: str = "text",
    pair: str | None = None,
    label: str | None = "label",
    target: str | None = None,
    image: str = "image",
    group: str | None = None,
    format: str = "auto",
    prompt: str | None = None,
    words: Mapping[str, str] | None = None,
    limit: int | None = None,
    rng: Rng | None = None,
    objects: Mapping[str, Any] = MappingProxyType({}),
    cells: Wanted | None = None,
    on_missing: OnMissing = "error",
) -> Table:
    """The rows of ``source`` as a table of images, of text or of cells.

    A column ``is_train`` is the published split. Labels are numbered in ascending order of their values unless the
    source names its classes.

    Parameters
    ----------
    source
        ``"sklearn:digits"``, ``"glyphs"`` and ``"passages"`` (see ``readers.bundled``); ``"arithmetic:blank"`` (see
        ``arithmetic_source``); a path to a file of a type in ``readers.by_location.READERS``, to a folder of such files
        or to a folder written by ``save_to_disk``; or ``"hub:owner/name"``, ``"hub:owner/name:configuration"``, either
        with ``"@split"`` behind it. ``$NAME`` in it is the environment variable.
    split
        The split to read. Without it, a source that has a train split and a test split (or, where the test split is
        missing or has no labels, a validation split) gives the rows of both, told apart by ``is_train``.
    text, pair, label, target, image, group
        Names of columns; a column may also bear the name with an ``s`` behind it. An ``.npz`` field ``client`` is the
        group where ``group`` is not set. No labels are read where ``label`` is None.
    format, prompt, words
        How rows are posed to a language model, see ``fedquilt.data.prompts``: the layout of the columns, a prompt with
        columns in braces, and the completion for each class.
    limit, rng
        The most rows, kept in their order, and the stream that draws them; the first ones if it is None.
    objects
        Sources that are objects of the calling program: the columns of each split, as ``readers.in_memory`` makes them.
    cells
        The columns of numbers and categories to read; with None the rows are images or text.
    on_missing
        With ``"drop"``, rows without a label or client id or with an empty text are in ``Table.dropped`` alone.

    Raises
    ------
    DataError
        if the source is missing, damaged or empty, has no such column or split, or some of its rows cannot be used:
        with every kind of trouble, the file and the lines of each.
    """
    if (location := expanded(source)).startswith(PREFIX):
        if prompt or words or format != "auto":
            raise DataError(f"data.source = '{source}': its prompts are ready; leave data.prompt, words and format out")
        return limited(_of_split(arithmetic_source(location), split), limit, rng)
    location, named = part_of(location)
    split = split or named
    wanted = {text, pair, label, target, image, group, *(placeholders(prompt) if prompt else ())} - {None}
    wanted |= {*cells.columns} if cells and cells.columns else set()
    splits = objects[source] if source in objects else read_location(location, source, {str(name) for name in wanted})
    raw, is_train = _chosen(splits, split, label, source)
    if raw.num_rows == 0:
        Troubles(raw.origin, raw.troubles).refuse(f"data.source = '{source}'")
        raise DataError(f"data.source = '{source}': holds no rows")
    if group is None and location.endswith(".npz") and "client" in raw.names:
        group = "client"
    names = {"text": text, "pair": pair, "label": label, "target": target, "image": image, "group": group}
    if cells is None:
        table = table_of(raw, source, names, format, prompt, words, on_missing)
    else:
        table = table_of_cells(raw, source, names, cells, on_missing)
    table = table if is_train is None else replace(table, is_train=is_train)
    if len(splits) == 1 and split not in splits:
        table = _of_split(table, split)
    return limited(table, limit, rng)


def _of_split(table: Table, split: str | None) -> Table:
    """The rows of one side of the published split, or all."""
    if split not in ("train", "test") or table.is_train is None:
        return table
    return table.rows((table.is_train == (split == "train")).nonzero()[:, 0])


def part_of(location: str) -> tuple[str, str | None]:
    """The location without the split or sheet behind an ``@``, and its name."""
    whole, _, named = location.partition("@")
    if not named or not (location.startswith("hub:") or (os.path.isfile(whole) and not os.path.exists(location))):
        return location, None
    return whole, named


def expanded(source: str) -> str:
    """``source`` with every ``$NAME`` and a leading ``~`` filled in.

    Raises
    ------
    DataError
        if an environment variable is not set.
    """
    for match in re.finditer(r"\$(\w+|\{\w+\})", source):
        name = match.group(1).strip("{}")
        if not os.environ.get(name):
            raise DataError(
                f"data.source = '{source}': the environment variable {name} is not set; "
                f"set it to the folder that holds the data, for instance: export {name}=/path/to/data"
            )
    return os.path.expanduser(os.path.expandvars(source))


def limited(table: Table, limit: int | None, rng: Rng | None = None) -> Table:
    """At most ``limit`` rows in their order, drawn by ``rng`` or the first ones without it; all rows for None or 0."""
    if not limit or limit >= len(table):
        return table
    rows = np.arange(limit) if rng is None else np.sort(rng.numpy().choice(len(table), size=limit, replace=False))
    return table.rows(rows)


def published_split(table: Table) -> tuple[Table, Table | None]:
    """The training rows, and the test rows of the published split or None if the table has none."""
    if table.is_train is None or bool(table.is_train.all()):
        return table, None
    return table.rows(table.is_train.nonzero()[:, 0]), table.rows((~table.is_train).nonzero()[:, 0])


def with_classes(
    table: Table, classes: Sequence[str], where: str, absent_from: str = "the training data does not have"
) -> Table:
    """The table with its labels numbered by ``classes``, so that tables that were read apart agree.

    Names that mean the same are joined as ``classes.matched`` says.

    ``where`` names the table in the error, ``absent_from`` where a class of it is missing.

    Raises
    ------
    DataError
        if the table has a label that is not among ``classes``.
    """
    if table.labels is None or table.classes == tuple(classes):
        return table
    indices = matched(table.classes, classes)
    used = {*table.labels.unique().tolist()}
    unknown = [name for number, name in enumerate(table.classes) if indices[number] is None and number in used]
    if unknown:
        names = ", ".join(repr(name) for name in unknown)
        raise DataError(f"{where}: has classes that {absent_from} ({names})")
    numbers = torch.tensor([-1 if index is None else index for index in indices])
    return replace(table, labels=numbers[table.labels], classes=tuple(classes))


def require_labels(table: Table, source: str) -> Tensor:
    """The labels of the table.

    Raises
    ------
    DataError
        if it has none.
    """
    if table.labels is None:
        raise DataError(
            f"data.source = '{source}': has no labels, which this task needs; set data.label to the column that "
            "holds them "
            f"(columns: {', '.join(table.columns) or 'none'})"
        )
    return table.labels


def _chosen(splits: Mapping[str, Raw], split: str | None, label: str | None, source: str) -> tuple[Raw, Tensor | None]:
    if split is not None and split in splits:
        return splits[split], None
    only = next(iter(splits.values()))
    if len(splits) == 1 and (split is None or (split in ("train", "test") and "is_train" in only.names)):
        return only, None
    if split is not None:
        there = ", ".join(name or "(unnamed)" for name in splits)
        raise DataError(
            f"data.source = '{source}': has no split '{split}'{suggestion(split, list(splits))} (there are: {there})"
        )
    held_out = [name for name in ("test", "validation") if name in splits and not _unlabelled(splits[name], label)]
    if "train" not in splits or not held_out:
        if "train" in splits:
            return splits["train"], None
        raise DataError(
            f"data.source = '{source}': has the splits {', '.join(name or '(unnamed)' for name in splits)} and "
            "none of them is "
            "'train'; name one file, or add the split or sheet (hub:owner/name@split, rows.xlsx@sheet)"
        )
    train, test = splits["train"], splits[held_out[0]]
    return joined([train, test], source), torch.arange(train.num_rows + test.num_rows) < train.num_rows


def _unlabelled(raw: Raw, label: str | None) -> bool:
    # hub benchmarks hide the answers of their test split behind -1
    return label is not None and label in raw.class_names and all(value == -1 for value in raw.read(label))
