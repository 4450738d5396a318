"""Text of other people in Markdown, such as names of sites and classes, which must not become markup."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """The text on one line, in which nothing is markup of Markdown, of a table or of HTML."""
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """The text on one line as code, whatever backticks it holds."""
    line = " ".join(text.split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{ticks}{space}{line}{space}{ticks}"
