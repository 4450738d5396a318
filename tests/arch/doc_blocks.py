"""The documents, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from project_sources import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BESIDE = (
    ROOT / "CONTRIBUTING.md",
    *(page for folder in ("bench", "examples", "experiments") for page in sorted((ROOT / folder).rglob("README.md"))),
)
"""Pages of the repository whose commands are read, but not run."""
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.S | re.M)
INLINE = re.compile(r"`((?:\.venv/bin/)?fedquilt [a-z][^`]*)`")


class Block(NamedTuple):
    """A block of code: its language, the name of the file that it is, if it is one, and its text."""

    language: str
    file: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, or all."""
    found = [Block(*match.groups(default="")) for match in FENCE.finditer(page.read_text("utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def commands(text: str) -> list[str]:
    """The lines of a shell, without comments, and with continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()
