"""What predictions of a run are made of: the rows of a file, and the classes or texts that a model gives for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedquilt.config.schema import Config
from fedquilt.core.errors import DataError
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
    """

    classes: tuple[str, ...] = ()
    probabilities: Tensor | None = None
    texts: tuple[str, ...] = ()

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield a dictionary for each row: its number from 0, and the class with its probability, or the text."""
        if self.probabilities is None:
            yield from ({"row": row, "text": text} for row, text in enumerate(self.texts))
            return
        best = self.probabilities.max(1)
        for row, (value, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            yield {"row": row, "class": self.classes[index], "probability": value}


def of_logits(logits: Tensor, classes: Sequence[str]) -> Predictions:
    """Predictions from the logits of rows, (rows, classes); outputs without names are numbered."""
    names = tuple(classes) or tuple(map(str, range(logits.shape[1])))
    return Predictions(names, logits.float().softmax(1))


def read_rows(
    config: Config, source: str, features: Preprocessor | None, objects: Mapping[str, Any] | None = None
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
        raise DataError(str(error).replace(f"data.source = '{source}'", f"--input '{source}'")) from error
    reads = TASKS[config.model.task].reads
    if table.kind != reads:
        raise DataError(f"--input '{source}': holds rows of the kind '{table.kind}', and the model reads '{reads}'")
    return table


def unlabelled(loaded: Loaded, table: Table) -> dict[str, Tensor]:
    """The rows as a classifier reads them; labels are all 0, and stand for nothing."""
    classes = loaded.outputs.classes or table.classes
    return loaded.encode(replace(table, labels=torch.zeros(len(table), dtype=torch.long), classes=classes))
