"""Parties with files of their own: what the alignment of their rows makes of them, once it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedquilt.client.client import Client
from fedquilt.core.types import Memory, Order, Tree
from fedquilt.core.vertical import ALIGNED, TEST, Vertical
from fedquilt.data.table import take
from fedquilt.vertical.alignment.wrapper import aligned_rows

Halves = Callable[[int], tuple[Tensor, Tensor]]


def as_aligned(party: Client, rows: Tensor, halves: Halves) -> Client:
    """The party with the common rows of its file as aligned and test rows, and the others as its own.

    A late party does not hold every common row: one that it lacks is -1 in ``rows``, and its first row stands there,
    which ``lacking`` tells.
    """
    everything = party.splits[ALIGNED]
    learned, shown = halves(len(rows))
    own = torch.ones(len(everything["labels"]), dtype=torch.bool)
    own[rows[rows >= 0]] = False
    splits = {ALIGNED: take(everything, rows[learned].clamp(min=0)), TEST: take(everything, rows[shown].clamp(min=0))}
    return replace(party, train=take(everything, own.nonzero().squeeze(1)), splits=splits)


def lacking(memory: Memory, halves: Halves) -> tuple[Tensor, Tensor]:
    """Whether the party lacks each aligned row and each test row, both boolean (rows,)."""
    missing = aligned_rows(memory) < 0
    learned, shown = halves(len(missing))
    return missing[learned], missing[shown]


def resolved(vertical: Vertical, state: Tree) -> Vertical:
    """The federation with the rows that its active party's state says are common; unchanged where rows were dealt."""
    if vertical.halves is None:
        return vertical
    rows: Tensor = state["alignment"]["rows"]
    active: Any = vertical.active
    learned, shown = vertical.halves(len(rows))
    return replace(
        vertical,
        active=as_aligned(active, rows, vertical.halves),
        labels=vertical.labels[rows[learned]],
        test_labels=vertical.labels[rows[shown]],
        halves=None,
    )


def held(vertical: Vertical, state: Tree, *, shown: bool) -> Tensor:
    """Whether each party holds each common row, boolean (rows, K): of those that are learned, or that are ``shown``."""
    halves, count = vertical.halves, len(vertical.parties)
    if halves is None:
        return torch.ones(len(vertical.test_labels if shown else vertical.labels), count, dtype=torch.bool)
    found = state["alignment"]
    places = halves(len(found["rows"]))[int(shown)]
    whole = torch.ones(len(places), dtype=torch.bool)
    columns = [found["holds"][str(id)][places] if str(id) in found["holds"] else ~whole for id in range(count - 1)]
    return torch.stack([*columns, whole], 1)


def blank(rows: Tensor, missing: Tensor | None, order: Order | None = None) -> Tensor:
    """Rows with zeros where the party lacks them: of all rows, or of those that an order names."""
    if missing is None:
        return rows
    gone = missing if order is None else missing[torch.tensor(order.settings["rows"], dtype=torch.long)]
    return rows.masked_fill(gone.unsqueeze(1), 0.0)
