"""Tables and sentences as plain text of a given width, in which no number is cut."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from itertools import zip_longest

Column = list[str]

_GAP = "  "
_LONG = 16  # a word of a name that is longer than this may be broken
_NUMBER = re.compile(r"[-+]?(\d|nan|inf|$)")  # also "-", which stands for none


def laid_out(table: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return lines of texts, the first of which is the heading, in aligned columns; numbers are on the right.

    With ``width`` no line is longer, if it can be done without folding a number: headings are folded first, then names
    and sentences, and what still does not fit goes into a second table below, with the first column again.
    """
    if not table:
        return ""
    columns = [list(column) for column in zip(*table, strict=True)]
    folded = columns
    for lines in range(1, 1 + max(1, *(len(column[0].split()) for column in columns))):
        folded = [[_heading(column, lines), *column[1:]] for column in columns]
        if width is None or _width(folded) <= width:
            return _text(folded)
    assert width is not None
    blocks = [folded[:1]]
    for column in folded[1:]:
        least = sum(map(_least, (*blocks[-1], column))) + len(_GAP) * len(blocks[-1])
        if len(blocks[-1]) > 1 and least > width:
            blocks.append(folded[:1])
        blocks[-1].append(column)
    return "\n\n".join(_text(_fitted(block, width)) for block in blocks)


def wrapped(text: str, width: int | None = None, bullet: str = "") -> str:
    """A sentence after a bullet, folded between words to a width."""
    if width is None:
        return bullet + text
    indent = " " * len(bullet)
    return textwrap.fill(
        text, width, initial_indent=bullet, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _numeric(column: Column) -> bool:
    return all(_NUMBER.match(cell) for cell in column[1:])


def _heading(column: Column, lines: int) -> str:
    """The heading on at most so many lines, no narrower than the widest cell or word."""
    width = max(len(text) for text in (*column[0].split(), *column[1:], ""))
    while (folded := _folded(column[0], width)).count("\n") >= lines:
        width += 1
    return folded


def _least(column: Column) -> int:
    """The least width of a column."""
    if _numeric(column):
        return _width([column])
    return max(min(_LONG, len(word)) for cell in column for word in (*cell.split(), ""))


def _fitted(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns, of which texts are as narrow as it takes, and no wider than others that are folded."""
    given, whole = [*map(_least, columns)], [_width([column]) for column in columns]
    room = width - sum(given) - len(_GAP) * (len(columns) - 1)
    while room > 0 and (short := [at for at in range(len(columns)) if given[at] < whole[at]]):
        given[min(short, key=given.__getitem__)] += 1
        room -= 1
    return [
        column if _numeric(column) else [_folded(cell, most) for cell in column]
        for column, most in zip(columns, given, strict=True)
    ]


def _folded(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, max(1, width), break_on_hyphens=False))


def _width(columns: Sequence[Column]) -> int:
    """The width of a table, whose cells may have several lines."""
    widths = [max((len(line) for cell in column for line in cell.split("\n")), default=0) for column in columns]
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _text(columns: Sequence[Column]) -> str:
    widths, right = [_width([column]) for column in columns], [_numeric(column) for column in columns]
    heading, *rows = (_row(cells, widths, right) for cells in zip(*columns, strict=True))
    return "\n".join([*heading, _GAP.join("─" * width for width in widths), *(line for row in rows for line in row)])


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    """The lines of a row."""
    lines = zip_longest(*(cell.split("\n") for cell in cells), fillvalue="")
    return [
        _GAP.join(
            part.rjust(width) if number else part.ljust(width)
            for part, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
