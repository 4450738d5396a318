"""Names of classes that mean the same, wherever they come from: the rows, the run file, the base model's own config."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_WORDS = {"true": "1", "false": "0"}


def places(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """The place of each name among ``classes``, which holds it at most once; None for one that is not there.

    What is alike to the letter is joined first; of the rest what is alike but for case and spaces around it; of the
    rest what is the same number, where ``true`` is 1, ``false`` is 0 and ``LABEL_3`` is 3. Names that become alike in
    such a reading are not joined by it: that would be a guess.
    """
    found: list[int | None] = [None] * len(names)
    readings: tuple[Callable[[str], str], ...] = (str, _folded, _number)
    for reading in readings:
        mine = {place: reading(name) for place, name in enumerate(names) if found[place] is None}
        free = {place: reading(name) for place, name in enumerate(classes) if place not in found}
        if len({*mine.values()}) < len(mine) or len({*free.values()}) < len(free):
            continue
        where = {name: place for place, name in free.items()}
        for place, name in mine.items():
            found[place] = where.get(name)
    return found


def numbered(names: Sequence[str]) -> bool:
    """Whether each name says nothing but its own place: ``LABEL_0``, ``LABEL_1``, or ``0``, ``1``."""
    return all(_number(name) == str(place) and not _is_word(name) for place, name in enumerate(names))


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _number(name: str) -> str:
    folded = _folded(name)
    if match := re.fullmatch(r"(?:label_)?([0-9]{1,9})(?:\.0)?", folded):
        return str(int(match.group(1)))
    return _WORDS.get(folded, folded)


def _is_word(name: str) -> bool:
    return _folded(name) in _WORDS
