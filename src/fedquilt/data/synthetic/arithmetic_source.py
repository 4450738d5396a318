"""The source ``arithmetic:<format>``: generated word problems, the same in every run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedquilt.core.errors import DataError, suggestion
from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic import EVERYTHING, FORMATS, SPLITS, Domain, arithmetic_table
from fedquilt.data.synthetic.arithmetic_kinds import KINDS, NUM_STORIES
from fedquilt.data.table import Table, concatenated

PREFIX = "arithmetic:"
HELD_OUT = tuple(split for split in SPLITS if split != "train")
STORIES = tuple(str(number + 1) for number in range(NUM_STORIES))
KEYS = ("train", "test", "split", "kinds", "numbers", "stories", "draw")
_FORM = (
    "arithmetic:blank, arithmetic:choice, arithmetic:program or arithmetic:steps, perhaps followed by "
    "?train=2000&test=400&split=test&kinds=add,subtract&numbers=2-20&stories=1,2&draw=1"
)


@dataclass(frozen=True)
class _Asked:
    """The settings of a source."""

    train: int = 2000
    test: int = 400
    split: str = "test"
    draw: int = 0
    domain: Domain = EVERYTHING


def arithmetic_source(source: str) -> Table:
    """The word problems of the source ``arithmetic:<format>?<key>=<value>&...``.

    The rows of the split ``train`` come first, then those of the held-out split; ``is_train`` marks the former. The
    rows depend on the source alone, not on the seed of a run; fewer rows are a prefix of more rows. The keys:

        train, test   numbers of rows, 2000 and 400
        split         the held-out split, one of ``HELD_OUT``
        kinds         the kinds of calculation, keys of ``KINDS``, separated by commas; all if left out
        numbers       ``2-20``: the smallest and the largest number that a question may name
        stories       which of the known sentences of a kind, from 1, separated by commas; all if left out
        draw          a number; sources that differ in it alone have independent rows, some of which may coincide

    Raises
    ------
    DataError
        if the format, a key or a value is unknown, or there are too few such problems.
    """
    format, _, query = source.removeprefix(PREFIX).partition("?")
    if format not in FORMATS:
        raise DataError(
            f"data.source = '{source}': there is no format '{format}'{suggestion(format, FORMATS)}; allowed: {_FORM}"
        )
    asked = _Asked()
    for setting in query.split("&") if query else ():
        key, _, value = setting.partition("=")
        read = _read(key, value, asked)
        if isinstance(read, str):
            raise DataError(f"data.source = '{source}': {read}; allowed: {_FORM}")
        asked = replace(asked, **read)
    if not asked.train + asked.test:
        raise DataError(f"data.source = '{source}': asks for no rows; give train or test a number above 0")
    try:
        return _rows(format, asked)
    except DataError as error:
        raise DataError(f"data.source = '{source}': {error}") from error


def _rows(format: str, asked: _Asked) -> Table:
    root = Rng(0, ("arithmetic table", format))
    root = root.child("draw", asked.draw) if asked.draw else root
    parts = [
        arithmetic_table(format, count, name, root.child(name), asked.domain)
        for name, count in (("train", asked.train), (asked.split, asked.test))
        if count
    ]
    is_train = torch.arange(asked.train + asked.test) < asked.train
    return replace(concatenated(parts), is_train=is_train)


def _read(key: str, value: str, asked: _Asked) -> Mapping[str, Any] | str:
    """What a setting changes, or what is wrong with it."""
    match key:
        case "train" | "test" | "draw":
            if not re.fullmatch(r"[0-9]{1,6}", value):
                return f"{key} = '{value}' is not a number{'' if key == 'draw' else ' of rows'}"
            return {key: int(value)}
        case "split":
            if value not in HELD_OUT:
                known = f"{suggestion(value, HELD_OUT)} (there are: {', '.join(HELD_OUT)})"
                return f"there is no held-out split '{value}'{known}"
            return {key: value}
        case "numbers":
            bounds = re.fullmatch(r"([0-9]{1,6})-([0-9]{1,6})", value)
            if bounds is None or int(bounds[1]) > int(bounds[2]):
                return f"numbers = '{value}' is no range such as 2-20"
            return {"domain": replace(asked.domain, smallest=int(bounds[1]), largest=int(bounds[2]))}
        case "kinds" | "stories":
            allowed: tuple[str, ...] = tuple(KINDS) if key == "kinds" else STORIES
            named = value.split(",")
            for name in named:
                if name not in allowed:
                    return f"{key} = '{value}': there is no '{name}'{suggestion(name, allowed)}"
            if len(set(named)) < len(named):
                return f"{key} = '{value}' names one twice"
            if key == "kinds":
                return {"domain": replace(asked.domain, kinds=tuple(named))}
            return {"domain": replace(asked.domain, stories=tuple(int(name) - 1 for name in named))}
    return f"there is no key '{key}'{suggestion(key, KEYS)}"
