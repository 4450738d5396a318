"""The map of the source tree at the end of docs/design.md: one line for each file, the summary of its docstring.

``python tests/arch/tree_map.py`` writes it anew; ``test_tree_map.py`` fails where map and tree differ.
"""

from __future__ import annotations

import ast
import textwrap
from itertools import groupby
from pathlib import Path

from project_sources import ROOT, sources

PAGE = ROOT / "docs" / "design.md"
HEADING = "## Map of the tree"
INTRODUCTION = """\
Every file in `src/fedquilt` with the first line of its docstring. `python tests/arch/tree_map.py` writes this section
anew after a file was added, renamed or described differently.
"""


def tree_map() -> str:
    """The section, from its heading to the end of the page."""
    files = sorted((Path(source.path), summary(source.tree)) for source in sources())
    lines = [HEADING, "", INTRODUCTION]
    for folder, members in groupby(sorted(files, key=lambda one: one[0].parts[:-1]), key=lambda one: one[0].parent):
        lines += [f"**`{folder.as_posix()}`**", ""]
        for path, words in members:
            lines += textwrap.wrap(
                f"- `{path.name}`: {words}",
                120,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def summary(tree: ast.Module) -> str:
    """The first paragraph of a module's docstring on one line."""
    words = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    return words.replace("``", "`")


def written_map() -> str:
    """The section as it stands in the page."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(HEADING) :] if HEADING in text else ""


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8").removesuffix(written_map()).rstrip("\n")
    PAGE.write_text(f"{text}\n\n{tree_map()}", encoding="utf-8")
