"""What predictions of a run are made of: the rows of a file, and the classes or texts that a model gives for them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedquilt.config.schema import Config
from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import DataError, RunError
from fedquilt.core.tasks import TASKS
from fedquilt.data.loaders import load_table
from fedquilt.data.table import Table
from fedquilt.data.tabular import Preprocessor
from fedquilt.models.loaded import Loaded


class Predictions(NamedTuple):
    """Predictions of rows, in the order of their file.

    Attributes
    ----------
    classes
        The names of the classes; () for texts.
    probabilities
        The probability of each class, (rows, classes); None for texts.
    texts
        The text that a language model wrote for each row; () for classes.
    ids
        The ids by which the parties of a vertical run found the rows; () without.
    missing
        Why parties of a vertical run did not answer, by label.
    """

    classes: tuple[str, ...] = ()
    probabilities: Tensor | None = None
    texts: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    missing: Mapping[str, str] = MappingProxyType({})

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield a dictionary for each row: its number from 0, its id, and the class with its probability, or text."""
        if self.probabilities is None:
            yield from ({"row": row, "text": text} for row, text in enumerate(self.texts))
            return
        best = self.probabilities.max(1)
        for row, (value, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            named = {"id": self.ids[row]} if self.ids else {}
            yield {"row": row, **named, "class": self.classes[index], "probability": value}


def write_lines(lines: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Write the lines of predictions as CSV, or as JSON lines if the file's name ends in .jsonl.

    Raises
    ------
    RunError
        if the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, text_of(lines, as_json=file.suffix == ".jsonl").encode())
    except OSError as error:
        raise RunError(f"--out {file}: cannot be written ({error.strerror or error}); give another file") from error


def text_of(lines: Iterable[Mapping[str, Any]], *, as_json: bool) -> str:
    """The lines of predictions as CSV with a header, or as JSON lines."""
    held, made = list(lines), io.StringIO()
    if as_json:
        made.writelines(f"{json.dumps(line, ensure_ascii=False)}\n" for line in held)
    elif held:
        table = csv.DictWriter(made, [*held[0]], lineterminator="\n")
        table.writeheader()
        table.writerows(held)
    return made.getvalue()


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The lines of predictions in a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def of_logits(logits: Tensor, classes: Sequence[str]) -> Predictions:
    """Predictions from the logits of rows, (rows, classes); outputs without names are numbered."""
    names = tuple(classes) or tuple(map(str, range(logits.shape[1])))
    return Predictions(names, logits.float().softmax(1))


def read_rows(
    config: Config,
    source: str,
    features: Preprocessor | None,
    objects: Mapping[str, Any] | None = None,
    *,
    option: str = "--input",
) -> Table:
    """The rows of a source, read as the run file's own rows but without labels and completions.

    Parameters
    ----------
    config
        The config whose keys of ``[data]`` name columns and format.
    source
        A file, or another source that ``data.source`` may name.
    features
        How the model makes features of columns, which says what columns it reads; None if it reads no tables.
    objects
        Sources that are objects of the calling program.
    option
        What the source was given with, for errors.

    Raises
    ------
    DataError
        if the source cannot be read or lacks a column, or holds rows of another kind than the model reads.
    """
    about: dict[str, Any] = config.data.model_dump(include={"text", "pair", "image", "format", "prompt"})
    wanted = None if features is None else features.wanted
    try:
        table = load_table(source, label=None, cells=wanted, objects=objects or {}, **about)
    except DataError as error:
        words = str(error).replace(f"data.source = '{source}'", f"{option} '{source}'")
        raise DataError(words if words.startswith(option) else f"{option} '{source}': {words}") from error
    reads = TASKS[config.model.task].reads
    if table.kind != reads:
        raise DataError(f"{option} '{source}': holds rows of the kind '{table.kind}', and the model reads '{reads}'")
    return table


def unlabelled(loaded: Loaded, table: Table) -> dict[str, Tensor]:
    """The rows as a classifier reads them; labels are all 0, and stand for nothing."""
    classes = loaded.outputs.classes or table.classes
    return loaded.encode(replace(table, labels=torch.zeros(len(table), dtype=torch.long), classes=classes))
