"""Corruption of rows, the augmentation of self-supervision that needs to know nothing of what the columns mean."""

from __future__ import annotations

import torch
from torch import Tensor

from fedquilt.client.workbench import Batch
from fedquilt.core.rng import Rng

_KEPT = frozenset({"labels", "attention_mask"})
"""Columns that say what a row is and where it ends; they are not corrupted."""


def corrupted(rows: Batch, share: float, rng: Rng) -> Batch:
    """The rows with a share of their values replaced, each by the value of another row at the same place.

    In an image (a column of four dimensions) all channels of a pixel are replaced together.

    Paper: scarf, corruption
    """
    generator, count = rng.torch(), len(rows["labels"])

    def other(column: Tensor) -> Tensor:
        shape = (count, 1, *column.shape[2:]) if column.ndim == 4 else column.shape
        replaced = torch.rand(shape, generator=generator).to(column.device) < share
        donors = torch.randperm(count, generator=generator).to(column.device)
        return torch.where(replaced, column[donors], column)

    return {name: column if name in _KEPT else other(column) for name, column in sorted(rows.items())}
