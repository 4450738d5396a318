"""What of the rows is too long for a model, as the record of a run keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fedquilt.core.types import ClientId
from fedquilt.data.table import Columns, as_index
from fedquilt.experiment.data import Dealt
from fedquilt.models.reading import Reading

_SPLITS = ("train", "validation", "test")


def lost_of(
    reading: Reading, rows: Columns, test: Columns | None, dealt: Dealt, ids: Iterable[ClientId]
) -> dict[str, Any]:
    """How many rows of a group were cut, of all, of each client's splits and of the separate test set, if there is one.

    ``{"max_tokens", "rows", "cut", "answers", "tokens", "clients": [{"id", "train", "validation", "test"}], "test"}``:
    how many tokens a row may have, how many rows there are, are cut, lost of their answer, and the tokens lost; a
    client's numbers are of rows that were cut. Nothing for rows that are no text.
    """
    if reading.lost is None or dealt.table is None or dealt.table.kind != "text":
        return {}
    lost = reading.lost(dealt.table, rows)
    cut = lost.sum(1) > 0
    clients = [
        {"id": id, **{name: int(cut[as_index(getattr(dealt.splits[id], name))].sum()) for name in _SPLITS}}
        for id in ids
        if id in dealt.splits
    ]
    found: dict[str, Any] = {"max_tokens": reading.width, **counted(lost), "clients": clients}
    if dealt.test is not None and test is not None:
        found["test"] = counted(reading.lost(dealt.test, test))
    return found


def counted(lost: Tensor) -> dict[str, int]:
    """How many rows there are, were cut, and lost some of their answer, and how many tokens were lost."""
    return {
        "rows": len(lost),
        "cut": int((lost.sum(1) > 0).sum()),
        "answers": int((lost[:, 1] > 0).sum()),
        "tokens": int(lost.sum()),
    }
