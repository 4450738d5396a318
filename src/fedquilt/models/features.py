"""Preparing rows of tables for a model: features are made by the preprocessing that belongs to the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedquilt.core.errors import DataError, ModelError
from fedquilt.data.bad_rows import Troubles
from fedquilt.data.cells import Cells, read_cells
from fedquilt.data.readers.by_location import read_location
from fedquilt.data.readers.in_memory import splits_in_memory
from fedquilt.data.table import Columns, Table
from fedquilt.data.tabular import FORMAT, Preprocessor, preprocessor_from
from fedquilt.models.hf_files import PREPROCESSOR, read_preprocessor
from fedquilt.models.locate import Source


def features_for(source: Source, config: Any, features: Preprocessor | None, revision: str | None) -> Preprocessor:
    """The preprocessing of a model of tables: the model's own if it was saved, or else ``features``.

    The config of a model without files gets as many inputs as there are features, in place.

    Raises
    ------
    ModelError
        if neither is known, or the model's own cannot be read.
    """
    if source.location is not None:
        kept = read_preprocessor(source, False, revision)
        if not kept:
            raise ModelError(
                f"model '{source.name}': has no {PREPROCESSOR}, which says how columns become its inputs; name a model "
                "that fedquilt exported, or 'mlp'"
            )
        return preprocessor_from(kept, f"model '{source.name}': {PREPROCESSOR}")
    if features is None:
        raise ModelError(f"model '{source.name}': has as many inputs as the data gives features, and no data is known")
    config.num_features = features.width
    return features


def save_features(folder: Path, features: Preprocessor) -> None:
    """Write how columns become features beside an adapter; a whole model is saved with it."""
    (folder / PREPROCESSOR).write_text(json.dumps(features.as_json(), indent=2) + "\n", "utf-8")


def saved_features(folder: Path) -> Preprocessor | None:
    """What ``save_features`` wrote into the folder; None if there is nothing, or the preprocessing is of images.

    Raises
    ------
    ModelError
        if the file cannot be read.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    tabular = isinstance(content, dict) and content.get("format") == FORMAT
    return preprocessor_from(content, str(path)) if tabular else None


def features(folder: str | Path, rows: Any) -> Tensor:
    """The inputs of an exported model of tables for these rows, float32 (rows, width).

    Parameters
    ----------
    folder
        The folder of the exported model or adapter.
    rows
        A dictionary of columns, a pandas data frame, a ``datasets.Dataset``, or the path of a file; columns that the
        model does not read are ignored.

    Raises
    ------
    FedquiltError
        ModelError if the folder holds no preprocessing of columns, DataError if the rows lack a column or some of them
        cannot be used.
    """
    made = saved_features(Path(folder))
    if made is None:
        raise ModelError(f"{folder} holds no preprocessing of columns ({PREPROCESSOR}); export a model of tables there")
    if isinstance(rows, str | Path):
        raw = read_location(str(rows), str(rows), set(made.wanted.columns or ()))
    else:
        raw = splits_in_memory(rows)
    if len(raw) > 1:
        raise DataError(f"the rows have the splits {', '.join(raw)}; give one of them")
    (whole,) = raw.values()
    troubles = Troubles(whole.origin, whole.troubles)
    cells = read_cells(whole, made.wanted, (), "the rows", troubles)
    troubles.refuse("the rows")
    return made(cells)


def cells_encoder(made: Preprocessor) -> Callable[[Table], Columns]:
    """``encode(table)``: columns features, float32 (rows, width), and labels, int64 (rows,).

    Raises
    ------
    DataError
        if the rows are not cells, lack a column of the preprocessing, or have no labels.
    """

    def encode(table: Table) -> Columns:
        if not isinstance(table.inputs, Cells):
            raise DataError(
                "the model takes columns of numbers and categories, but the data holds images or text; set model.task "
                "and data.source to one kind"
            )
        if table.labels is None:
            raise DataError("the data has no labels, and a classifier needs them; name their column in data.label")
        return {"features": made(table.inputs), "labels": table.labels.long()}

    return encode


def features_preparer(dtype: torch.dtype) -> Callable[[Columns], dict[str, Tensor]]:
    """``prepare(columns)``: the features as ``dtype``, (rows, width)."""
    return lambda columns: {"features": columns["features"].to(dtype)}
