"""Rows as they were read (``Table``), and as a model takes them (``Columns``)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from fedquilt.core.errors import DataError
from fedquilt.data.bad_rows import Dropped
from fedquilt.data.cells import Cells, concatenated_cells
from fedquilt.data.prompts import Turns
from fedquilt.data.readers.images import Pictures
from fedquilt.data.readers.raw_columns import Origin, joined_origins

Row = TypeVar("Row")

Inputs = Tensor | Pictures | list[str] | Cells
"""The inputs of the rows of a table, see ``Table.inputs``."""

Columns = dict[str, Tensor]
"""Model-ready rows by column name; every tensor has the same first dimension."""

Indices = Sequence[int] | np.ndarray | Tensor
"""Row numbers, in the order wanted."""


@dataclass(frozen=True)
class Table:
    """Data as it was read, independent of any model.

    Attributes
    ----------
    kind
        ``"image"``, ``"text"`` or ``"table"``.
    inputs
        uint8 images ``(n, H, W)`` or ``(n, H, W, 3)``, ``Pictures`` of different sizes, ``n`` strings (sentences, or
        the prompts of a causal language model), or ``Cells``, columns of numbers and categories.
    labels
        Class numbers, int64 ``(n,)``; None if the source has none.
    classes
        The class names, in the order of their numbers.
    pairs
        The second sentence of every row.
    targets
        The completions of a causal language model.
    turns
        The conversation before each completion, if the source holds conversations; ``inputs`` holds the same as text.
    groups
        The natural client id of every row, int64 ``(n,)``.
    group_names
        The names of the ids, in the order of their numbers; () if the ids are only numbers.
    is_train
        The published split, bool ``(n,)``.
    columns
        The names of all columns of the source, read or not.
    origin
        The file and line of every row.
    dropped
        The rows of the source that are left out, by what they lack.
    """

    kind: str
    inputs: Inputs
    labels: Tensor | None
    classes: tuple[str, ...]
    pairs: list[str] | None = None
    targets: list[str] | None = None
    turns: list[Turns] | None = None
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    is_train: Tensor | None = None
    columns: tuple[str, ...] = ()
    origin: Origin | None = None
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def texts(self) -> list[str]:
        """The inputs of a table of text; none for other tables."""
        return self.inputs if isinstance(self.inputs, list) else []

    def rows(self, indices: Indices) -> Table:
        """The rows numbered ``indices``, in that order, as a table with the same classes."""
        chosen = as_index(indices)
        inputs: Inputs
        if isinstance(self.inputs, Tensor):
            inputs = self.inputs[chosen]
        elif isinstance(self.inputs, Cells):
            inputs = self.inputs.rows(chosen.numpy())
        elif isinstance(self.inputs, Pictures):
            inputs = Pictures(self.inputs[row] for row in chosen.tolist())
        else:
            inputs = [self.inputs[row] for row in chosen.tolist()]

        def strings(column: list[Row] | None) -> list[Row] | None:
            return None if column is None else [column[row] for row in chosen.tolist()]

        def numbers(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[chosen]

        return replace(
            self,
            inputs=inputs,
            labels=numbers(self.labels),
            pairs=strings(self.pairs),
            targets=strings(self.targets),
            turns=strings(self.turns),
            groups=numbers(self.groups),
            is_train=numbers(self.is_train),
            origin=None if self.origin is None else self.origin.rows(chosen.numpy()),
        )


def concatenated(tables: Sequence[Table]) -> Table:
    """The rows of all tables, one table after another, without groups and split.

    The classes are those of all tables, in the order in which they are met first; labels are numbered by them.

    Raises
    ------
    DataError
        if the tables differ in kind or in the columns that they have.
    """
    first, *others = tables
    for number, other in enumerate(others, start=1):
        if _form(other) != _form(first):
            raise DataError(f"source {number} holds {_form(other)}, but source 0 holds {_form(first)}")

    def strings(columns: list[list[Row] | None]) -> list[Row] | None:
        return None if columns[0] is None else [value for column in columns for value in column or ()]

    classes = tuple(dict.fromkeys(name for table in tables for name in table.classes))
    labels = [_numbered(table.labels, table.classes, classes) for table in tables if table.labels is not None]
    origins = [table.origin for table in tables if table.origin is not None]
    return replace(
        first,
        inputs=_joined_inputs([table.inputs for table in tables]),
        labels=torch.cat(labels) if labels else None,
        classes=classes,
        pairs=strings([table.pairs for table in tables]),
        targets=strings([table.targets for table in tables]),
        turns=strings([table.turns for table in tables]),
        groups=None,
        group_names=(),
        is_train=None,
        origin=joined_origins(origins) if len(origins) == len(tables) else None,
        dropped=tuple(lacking for table in tables for lacking in table.dropped),
    )


def _numbered(labels: Tensor, own: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Labels that were numbered by their table's own classes, numbered by ``classes``."""
    if tuple(own) == tuple(classes):
        return labels
    return torch.tensor([classes.index(name) for name in own], dtype=torch.int64)[labels]


def _joined_inputs(inputs: Sequence[Inputs]) -> Inputs:
    stacks = [own for own in inputs if isinstance(own, Tensor)]
    cells = [own for own in inputs if isinstance(own, Cells)]
    if cells:
        return concatenated_cells(cells)
    if len(stacks) == len(inputs) and len({own.shape[1:] for own in stacks}) == 1:
        return torch.cat(stacks)
    if isinstance(inputs[0], list):
        return [text for own in inputs if isinstance(own, list) for text in own]
    pictures = [own for own in inputs if isinstance(own, Tensor | Pictures)]
    return Pictures(picture for own in pictures for picture in own)


def _form(table: Table) -> str:
    """A description of the kind and columns of a table, which must be equal in tables that are concatenated."""
    kinds = {"labels": table.labels, "second texts": table.pairs, "completions": table.targets}
    extra = [name for name, column in (kinds | {"conversations": table.turns}).items() if column is not None]
    return f"{table.kind}{' with ' if extra else ''}{', '.join(extra)}"


def as_index(indices: Indices) -> Tensor:
    """The row numbers as a one-dimensional int64 tensor."""
    return torch.as_tensor(np.asarray(indices, dtype=np.int64))


def num_rows(columns: Mapping[str, Tensor]) -> int:
    """The number of rows; 0 for no columns.

    Raises
    ------
    ValueError
        if the columns differ in length.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of one table must have one length, got {lengths}")
    return next(iter(lengths.values()), 0)


def digest(columns: Iterable[Columns]) -> str:
    """The sha256 (hex) of model-ready rows: names, types, shapes and all values."""
    made = hashlib.sha256()
    for own in columns:
        for name, column in sorted(own.items()):
            made.update(_head(name, column))
            made.update(_content(column))
    return made.hexdigest()


def digest_of_many(columns: Iterable[Columns]) -> str:
    """A sha256 (hex) of the same, in which a tensor that comes up again is not read again.

    A test set that all clients have in common is thus read once. Equal values give an equal digest, whether they are in
    one tensor or in several.
    """
    made, known = hashlib.sha256(), dict[int, tuple[ref[Tensor], bytes]]()
    for own in columns:
        for name, column in sorted(own.items()):
            tensor, found = known.get(id(column), (None, b""))
            if tensor is None or tensor() is not column:  # the id may be that of one that is gone
                found = hashlib.sha256(_content(column)).digest()
                known[id(column)] = ref(column), found
            made.update(_head(name, column) + found)
    return made.hexdigest()


def _head(name: str, column: Tensor) -> bytes:
    return f"{name} {column.dtype} {tuple(column.shape)};".encode()


def _content(column: Tensor) -> memoryview | bytes:
    return column.detach().cpu().contiguous().view(torch.uint8).numpy().data if column.numel() else b""


def take(columns: Mapping[str, Tensor], indices: Indices) -> Columns:
    """The rows numbered ``indices`` of every column, in that order."""
    chosen = as_index(indices)
    return {name: column[chosen.to(column.device)] for name, column in columns.items()}
