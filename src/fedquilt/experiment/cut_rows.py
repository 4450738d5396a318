"""What of the rows is too long for a model: for the record of a run, and for whoever checks a run file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fedquilt.config.groups import Part
from fedquilt.core.types import ClientId
from fedquilt.data.table import Columns, Table, as_index
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


_MOST = 20_000  # rows that are looked at


def notes_on(part: Part, reading: Reading, table: Table | None) -> list[str]:
    """What a group's model would make of its rows.

    Raises
    ------
    DataError
        if a row cannot be read.
    """
    config = part.config.model
    notes, label = [], f"group '{part.label}': " if part.label else ""
    if reading.width is not None and reading.width < config.max_length:
        notes.append(
            f"{label}model.max_length = {config.max_length}: the model or its tokenizer takes {reading.width} tokens "
            "at most, and rows are cut to these"
        )
    if reading.lost is None or table is None or table.kind != "text":
        return notes
    seen = table.rows(range(min(len(table), _MOST)))
    found = counted(reading.lost(seen, reading.encode(seen)))
    if found["cut"]:
        part_of = "" if len(seen) == len(table) else f"first {len(seen)} of {len(table)} "
        answers = f"; {found['answers']} of them lose the end of their answer" if found["answers"] else ""
        notes.append(
            f"{label}model.max_length = {config.max_length}: {found['cut']} of the {part_of}{found['rows']} rows are "
            f"longer than {reading.width} tokens and are cut ({found['tokens']} tokens in all{answers})"
        )
    return notes
