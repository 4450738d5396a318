"""The rows of several clients as one batch: equally many of each, filled up with rows that count for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.client.workbench import Batch
from fedquilt.core.tasks import IGNORED


def joined(columns: Sequence[Batch], chosen: Sequence[Tensor]) -> Batch:
    """The chosen rows of each client behind those of the client before, (K rows of the most, ...).

    A client with fewer rows is filled up with its first one, and short columns of tokens are filled up to the longest,
    both without labels.
    """
    most = max(len(rows) for rows in chosen)
    parts = [_filled(own, rows, most) for own, rows in zip(columns, chosen, strict=True)]
    return {name: torch.cat(_equally_wide(name, [part[name] for part in parts])) for name in parts[0]}


def _filled(columns: Batch, rows: Tensor, most: int) -> Batch:
    missing = most - len(rows)
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing)])
    part = {name: column[rows] for name, column in columns.items()}
    if missing:
        part["labels"][most - missing :] = IGNORED
    return part


def _equally_wide(name: str, parts: list[Tensor]) -> list[Tensor]:
    if parts[0].dim() != 2 or len({part.shape[1] for part in parts}) == 1:
        return parts
    widest, value = max(part.shape[1] for part in parts), IGNORED if name == "labels" else 0
    return [functional.pad(part, (0, widest - part.shape[1]), value=value) for part in parts]
