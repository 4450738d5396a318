"""Packing: several examples of a language model in one row, apart from each other, so that little of it is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch

from fedquilt.core.tasks import IGNORED
from fedquilt.data.table import Columns


def packed(columns: Columns) -> Columns:
    """The same examples in fewer rows of the same width, each row filled from the left.

    ``position_ids`` (rows, width) count from 0 in every example, by which a model tells examples apart. On padding they
    are 0, so that each of its tokens, a repetition of the row's first one, is alone as well. The first token of an
    example is not a label, as nothing of its example predicts it; the labels that count are thus those of the unpacked
    rows. Which examples share a row depends only on their lengths.
    """
    lengths = columns["attention_mask"].sum(1).tolist()
    rows = best_fit(lengths, columns["input_ids"].shape[1])
    made = {name: column.new_zeros(len(rows), column.shape[1]) for name, column in columns.items()}
    made |= {"position_ids": torch.zeros_like(made["input_ids"]), "labels": made["labels"].fill_(IGNORED)}
    for row, examples in enumerate(rows):
        start = 0
        for example in examples:
            stop = start + lengths[example]
            for name in ("input_ids", "attention_mask"):
                made[name][row, start:stop] = columns[name][example, : stop - start]
            made["labels"][row, start + 1 : stop] = columns["labels"][example, 1 : stop - start]
            made["position_ids"][row, start:stop] = torch.arange(stop - start)
            start = stop
        made["input_ids"][row, start:] = made["input_ids"][row, 0]
    return made


def best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """The numbers of the examples in each row of ``width`` tokens, by best-fit decreasing.

    From the longest example to the shortest, each goes where it leaves the least room, or into a new row. This takes at
    most 11/9 of the fewest rows that are possible, plus one.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of each row, ascending, with the row's number
    for example in sorted(range(len(lengths)), key=lambda example: -lengths[example]):
        place = bisect_left(room, (lengths[example], -1))
        if place == len(room):
            rows.append([])
            left, row = width, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(example)
        insort(room, (left - lengths[example], row))
    return rows
