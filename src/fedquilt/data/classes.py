"""Matching class names from different origins: the data, the run file and the config of the base model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_WORDS = {"true": "1", "false": "0"}


def matched(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """The index in ``classes`` of each name, or None for a name that has no match there.

    Exactly equal names are matched first; of the remaining names those that are equal except for case and white space;
    then those that are the same number, where ``true`` is 1, ``false`` is 0 and ``LABEL_3`` is 3. A step is skipped if
    it would make two names of one side equal, because the match would then be a guess.
    """
    found: list[int | None] = [None] * len(names)
    readings: tuple[Callable[[str], str], ...] = (str, _folded, _number)
    for reading in readings:
        mine = {index: reading(name) for index, name in enumerate(names) if found[index] is None}
        free = {index: reading(name) for index, name in enumerate(classes) if index not in found}
        if len({*mine.values()}) < len(mine) or len({*free.values()}) < len(free):
            continue
        where = {name: index for index, name in free.items()}
        for index, name in mine.items():
            found[index] = where.get(name)
    return found


def numbered(names: Sequence[str]) -> bool:
    """Whether each name is only its own index: ``LABEL_0``, ``LABEL_1``, or ``0``, ``1``."""
    return all(_number(name) == str(index) and not _is_word(name) for index, name in enumerate(names))


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _number(name: str) -> str:
    folded = _folded(name)
    if match := re.fullmatch(r"(?:label_)?([0-9]{1,9})(?:\.0)?", folded):
        return str(int(match.group(1)))
    return _WORDS.get(folded, folded)


def _is_word(name: str) -> bool:
    return _folded(name) in _WORDS
