"""What a party sees of a row: some columns of a table, or parts of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from fedquilt.core.errors import DataError
from fedquilt.core.parties import Corner
from fedquilt.data.table import Table


def seen_of(table: Table, corners: Sequence[Corner] | None) -> Table:
    """The table with images cut to these parts, which stand next to each other; unchanged for None.

    Raises
    ------
    DataError
        if the rows are not images of one size, or the parts differ in height.
    """
    if corners is None:
        return table
    if not isinstance(table.inputs, Tensor):
        raise DataError("parties: view is of images of one size, and the data has none; name columns or a text")
    parts = [_cut(table.inputs, corner) for corner in corners]
    if len({part.shape[1] for part in parts}) > 1:
        raise DataError(f"parties: the parts {', '.join(corners)} differ in height, so they fit in no one image")
    return replace(table, inputs=torch.cat(parts, dim=2))


def _cut(images: Tensor, corner: Corner) -> Tensor:
    """A half or a quarter of images (n, H, W) or (n, H, W, 3)."""
    assert corner in get_args(Corner)
    height, width = images.shape[1] // 2, images.shape[2] // 2
    rows = slice(None, height) if "top" in corner else slice(height, None) if "bottom" in corner else slice(None)
    columns = slice(None, width) if "left" in corner else slice(width, None) if "right" in corner else slice(None)
    return images[:, rows, columns]
