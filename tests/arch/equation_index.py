"""The page of papers and equations, from papers.toml and the `Paper:` lines of the docstrings in src/.

``python tests/arch/equation_index.py`` writes it anew; ``test_equations.py`` fails where page and code differ.
"""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from typing import Any, NamedTuple

from project_sources import ROOT, sources

PAGE = ROOT / "docs" / "equations.md"
LINE = re.compile(r"^\s*Paper:\s*(?P<citations>.+?)\s*$", re.MULTILINE)
BAR = r"\|"
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
HEAD = """\
# Papers and equations

Every paper that the code builds on, and every equation and algorithm of it with the one function that implements it.
The words are those of [papers.toml](../papers.toml); a function names its equation in its docstring's line `Paper:`.
Where a method differs from its paper, its [page](methods/README.md) says so. The paper's own number of an equation
stands in brackets after its name where a source that was read gives it; names without one are this project's.

`python tests/arch/equation_index.py` writes this page, and a test compares it with the code.
"""


class Citation(NamedTuple):
    """Who cites what: ``("fedquilt/aggregate/mean.py", "layerwise_mean", ("fed-hello", "layer-mean"))``."""

    file: str
    function: str
    equation: tuple[str, str]


@cache
def papers() -> list[dict[str, Any]]:
    entries = tomllib.loads((ROOT / "papers.toml").read_text(encoding="utf-8"))["paper"]
    assert len(entries) >= 6
    return entries


@cache
def cited() -> tuple[Citation, ...]:
    """The citations of all `Paper:` lines."""
    found = []
    for source in sources():
        for node in ast.walk(source.tree):
            if not isinstance(node, DEFINITIONS):
                continue
            for match in LINE.finditer(ast.get_docstring(node) or ""):
                for citation in match["citations"].rstrip(".").split(";"):
                    key, _, equation = citation.partition(",")
                    found.append(Citation(source.path, node.name, (key.strip(), equation.strip())))
    return tuple(found)


def page() -> str:
    """The page: a section for each paper with a table of its equations."""
    homes = {one.equation: f"[`{one.function}`](../src/{one.file})" for one in cited()}
    parts = [HEAD]
    for paper in papers():
        authors = paper["authors"]
        names = ", ".join(authors) if len(authors) <= 3 else f"{authors[0]} and others"
        methods = ", ".join(f"[{name}](methods/{name}.md)" for name in paper["methods"])
        shown = f" Methods: {methods}." if methods else ""
        parts += [
            f"## {paper['key']}\n",
            f"{names}: [{paper['title']}]({paper['link']}), {paper['venue']}, {paper['year']}.{shown}\n",
            "| equation | in words | function |\n|---|---|---|",
            *(
                f"| {one['id']}{_where(one)} | {one['words'].replace('|', BAR)} | {homes[paper['key'], one['id']]} |"
                for one in paper["equation"]
            ),
            "",
        ]
    return "\n".join(parts)


def _where(equation: dict[str, Any]) -> str:
    return f" ({equation['where']})" if "where" in equation else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
