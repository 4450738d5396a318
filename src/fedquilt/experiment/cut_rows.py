"""Remarks on how a model reads its rows, for checks of a run file; and counts of rows that are too long for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fedquilt.client.packing import best_fit
from fedquilt.config.data import Data
from fedquilt.config.groups import Part
from fedquilt.core.types import ClientId
from fedquilt.data.bad_rows import described, listed
from fedquilt.data.table import Columns, Table, as_index
from fedquilt.data.tabular import Preprocessor
from fedquilt.experiment.data import AssignedRows
from fedquilt.models.reading import Reading

_SPLITS = ("train", "validation", "test")


def lost_of(
    reading: Reading, rows: Columns, test: Columns | None, assigned: AssignedRows, ids: Iterable[ClientId]
) -> dict[str, Any]:
    """How many rows of a group are truncated: in total, in each client's splits, and in the common test set.

    ``{"max_tokens", "rows", "cut", "answers", "tokens", "clients": [{"id", "train", "validation", "test"}], "test"}``:
    the largest number of tokens of a row; the numbers of rows, of truncated rows, of rows that lose some of their
    answer, and of lost tokens; and the number of truncated rows in each client's splits. Empty if the rows are no text.

    Parameters
    ----------
    reading : how the model reads rows.
    rows : the encoded rows of the group's source.
    test : the encoded common test rows; None if there are none.
    assigned : the rows as text, and who has which.
    ids : the clients of the group.
    """
    if reading.lost is None or assigned.table is None or assigned.table.kind != "text":
        return {}
    lost = reading.lost(assigned.table, rows)
    cut = lost.sum(1) > 0
    clients = [
        {"id": id, **{name: int(cut[as_index(getattr(assigned.splits[id], name))].sum()) for name in _SPLITS}}
        for id in ids
        if id in assigned.splits
    ]
    found: dict[str, Any] = {"max_tokens": reading.width, **counted(lost), "clients": clients}
    if assigned.test is not None and test is not None:
        found["test"] = counted(reading.lost(assigned.test, test))
    return found


def counted(lost: Tensor) -> dict[str, int]:
    """The numbers of rows, of truncated rows, of rows that lose some of their answer, and of lost tokens."""
    return {
        "rows": len(lost),
        "cut": int((lost.sum(1) > 0).sum()),
        "answers": int((lost[:, 1] > 0).sum()),
        "tokens": int(lost.sum()),
    }


_MOST = 20_000  # largest number of rows that are checked


def notes_on(part: Part, reading: Reading, table: Table | None) -> list[str]:
    """Remarks on rows that a group's model would truncate, on how many packing would make of them, and on columns.

    Raises
    ------
    DataError
        if a row cannot be read.
    """
    config = part.config.model
    notes, label = [], f"group '{part.label}': " if part.label else ""
    if reading.width is not None and reading.width < config.max_length:
        notes.append(
            f"{label}model.max_length = {config.max_length}: the model or its tokenizer takes at most "
            f"{reading.width} tokens, and longer rows are cut"
        )
    if reading.features is not None:
        return [*notes, label + _on_columns(reading.features)]
    if reading.lost is None or table is None or table.kind != "text":
        return notes
    seen = table.rows(range(min(len(table), _MOST)))
    columns = reading.encode(seen)
    found = counted(reading.lost(seen, columns))
    if found["cut"]:
        part_of = "" if len(seen) == len(table) else f"first {len(seen)} of {len(table)} "
        answers = f"; {found['answers']} of them lose the end of their answer" if found["answers"] else ""
        notes.append(
            f"{label}model.max_length = {config.max_length}: {found['cut']} of the {part_of}{found['rows']} rows are "
            f"longer than {reading.width} tokens and are cut ({found['tokens']} tokens in all{answers})"
        )
    if part.config.training.packing and len(seen):
        notes.append(label + _on_packing(columns))
    return notes


def notes_on_missing(table: Table, data: Data) -> list[str]:
    """Remarks on rows that are left out because they lack something, and on empty texts that are not."""
    if table.dropped:
        return [f"data.on_missing = '{data.on_missing}': left out: {described(table.dropped)}"]
    empty = [row for row, text in enumerate(table.texts) if not text.strip()]
    if not empty or table.origin is None:
        return []
    where = listed([table.origin.location(row) for row in empty])
    told = f"data.source = '{data.source}': {len(empty)} of {len(table)} rows have an empty text ({where})"
    return [f"{told} and are trained on; data.on_missing = 'drop' leaves them out"]


def _on_columns(features: Preprocessor) -> str:
    """What the columns of a table were read as, so that a column of codes among the numbers is noticed."""
    wanted = features.wanted
    texts = f" ({', '.join(map(repr, wanted.categorical))})" if wanted.categorical else ""
    return (
        f"data: columns of numbers {len(wanted.numbers)}, of categories {len(wanted.categorical)}{texts}; together "
        f"{features.width} features"
    )


def _on_packing(columns: Columns) -> str:
    """What packing makes of these rows, before they are divided among clients."""
    lengths, width = columns["attention_mask"].sum(1).tolist(), columns["input_ids"].shape[1]
    rows, tokens = len(best_fit(lengths, width)), sum(lengths)
    return (
        f"training.packing: {len(lengths)} examples fit into {rows} rows of {width} tokens, "
        f"{tokens / rows / width:.0%} of which are no padding; training.batch_size counts such rows"
    )
