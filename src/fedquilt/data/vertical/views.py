"""What a party sees of a row: some columns of a table, or parts of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import get_args

import torch
from torch import Tensor

from fedquilt.core.errors import DataError
from fedquilt.core.parties import Corner
from fedquilt.data.cells import Cells
from fedquilt.data.table import Table

_FEW = 12  # names of columns in a message


def seen_of(table: Table, corners: Sequence[Corner] | None, columns: Sequence[str] | None) -> Table:
    """The table with images cut to these parts, which stand next to each other, or with these columns alone.

    Unchanged where both are None. In names of columns ``*`` and ``?`` stand for any characters.

    Raises
    ------
    DataError
        if the rows are not images of one size, the parts differ in height, or there is no such column.
    """
    if columns is not None:
        if not isinstance(table.inputs, Cells):
            raise DataError("parties: columns is of rows of a table, and the data has none; name a view or a text")
        return replace(table, inputs=table.inputs.of(_matching(table.inputs.names, columns)))
    if corners is None:
        return table
    if not isinstance(table.inputs, Tensor):
        raise DataError("parties: view is of images of one size, and the data has none; name columns or a text")
    parts = [_cut(table.inputs, corner) for corner in corners]
    if len({part.shape[1] for part in parts}) > 1:
        raise DataError(f"parties: the parts {', '.join(corners)} differ in height, so they fit in no one image")
    return replace(table, inputs=torch.cat(parts, dim=2))


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern, in their own order."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise DataError(f"parties: no column is called '{pattern}'; the data has {_some(names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def _cut(images: Tensor, corner: Corner) -> Tensor:
    """A half or a quarter of images (n, H, W) or (n, H, W, 3)."""
    assert corner in get_args(Corner)
    height, width = images.shape[1] // 2, images.shape[2] // 2
    rows = slice(None, height) if "top" in corner else slice(height, None) if "bottom" in corner else slice(None)
    columns = slice(None, width) if "left" in corner else slice(width, None) if "right" in corner else slice(None)
    return images[:, rows, columns]
