"""The source ``arithmetic:<format>``: generated word problems, the same in every run."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from fedquilt.core.errors import DataError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic import FORMATS, SPLITS, arithmetic_table
from fedquilt.data.table import Table, concatenated

PREFIX = "arithmetic:"
HELD_OUT = tuple(split for split in SPLITS if split != "train")
_NUM_ROWS = {"train": 2000, "test": 400}
_FORM = "arithmetic:blank, arithmetic:choice or arithmetic:program, perhaps followed by ?train=2000&test=400&split=test"


def arithmetic_source(source: str) -> Table:
    """The word problems of the source ``arithmetic:<format>?train=<rows>&test=<rows>&split=<held-out split>``.

    The rows of the split ``train`` come first, then those of the held-out split; ``is_train`` marks the former. The
    rows depend on the source alone, not on the seed of a run; fewer rows are a prefix of more rows.

    Raises
    ------
    DataError
        if the format, a key or a value is unknown.
    """
    format, _, query = source.removeprefix(PREFIX).partition("?")
    if format not in FORMATS:
        raise DataError(
            f"data.source = '{source}': there is no format '{format}'{suggestion(format, FORMATS)}; allowed: {_FORM}"
        )
    num_rows, split = dict(_NUM_ROWS), "test"
    for setting in query.split("&") if query else ():
        key, _, value = setting.partition("=")
        if key in num_rows and re.fullmatch(r"[0-9]{1,6}", value):
            num_rows[key] = int(value)
        elif key == "split" and value in HELD_OUT:
            split = value
        else:
            raise DataError(f"data.source = '{source}': {_complaint(key, value)}; allowed: {_FORM}")
    if not sum(num_rows.values()):
        raise DataError(f"data.source = '{source}': asks for no rows; give train or test a number above 0")
    root = Rng(0, ("arithmetic table", format))
    parts = [
        arithmetic_table(format, count, name, root.child(name))
        for name, count in (("train", num_rows["train"]), (split, num_rows["test"]))
        if count
    ]
    is_train = torch.arange(sum(num_rows.values())) < num_rows["train"]
    return replace(concatenated(parts), is_train=is_train)


def _complaint(key: str, value: str) -> str:
    if key in _NUM_ROWS:
        return f"{key} = '{value}' is not a number of rows"
    if key == "split":
        return f"there is no held-out split '{value}'{suggestion(value, HELD_OUT)} (there are: {', '.join(HELD_OUT)})"
    return f"there is no key '{key}'{suggestion(key, (*_NUM_ROWS, 'split'))}"
