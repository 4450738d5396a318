"""What is no problem of a run file and still worth knowing before a run."""

from __future__ import annotations

from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.data.table import Table
from fedquilt.experiment.cut_rows import counted
from fedquilt.models.reading import Reading

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


def most_written(config: Config) -> int:
    """The most tokens that a model writes behind a prompt, to be judged."""
    return 0 if config.data.answers is None else config.data.new_tokens
