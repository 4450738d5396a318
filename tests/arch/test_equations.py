"""Every equation of papers.toml has one home in the code, and every `Paper:` line of the code leads to papers.toml."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

import pytest
from equation_index import DEFINITIONS, LINE, PAGE, cited, page, papers
from project_sources import sources


def listed() -> list[tuple[str, str]]:
    return [(paper["key"], equation["id"]) for paper in papers() for equation in paper.get("equation", [])]


def test_papers_are_complete_and_unlike() -> None:
    keys = Counter(paper["key"] for paper in papers())
    assert max(keys.values()) == 1, keys
    for paper in papers():
        assert {"key", "title", "authors", "year", "venue", "link", "methods"} <= paper.keys(), paper["key"]
        assert paper["link"].startswith("https://")
        assert paper.get("equation"), f"{paper['key']} has no equation: why is it listed?"
        assert all(len(equation["words"].split()) >= 5 for equation in paper["equation"])
        assert all(equation.keys() <= {"id", "where", "words"} for equation in paper["equation"])
    assert max(Counter(listed()).values()) == 1


@pytest.mark.parametrize("equation", listed(), ids=" ".join)
def test_an_equation_has_exactly_one_home(equation: tuple[str, str]) -> None:
    homes = [f"{one.file}, {one.function}" for one in cited() if one.equation == equation]
    assert len(homes) == 1, f"`Paper: {equation[0]}, {equation[1]}` stands in: {homes or 'no docstring'}"


def test_every_citation_leads_to_a_listed_equation() -> None:
    found = cited()
    assert len(found) >= 10
    unknown = [f"{one.file}, {one.function}: {one.equation}" for one in found if one.equation not in listed()]
    assert not unknown, "not in papers.toml:\n" + "\n".join(unknown)


def test_the_page_of_equations_is_that_of_the_code() -> None:
    assert page().count("](../src/") == len(listed())
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/arch/equation_index.py`"


def test_no_paper_line_stands_outside_a_definition() -> None:
    lines = sum(len(LINE.findall(source.text)) for source in sources())
    seen = len({(place, match) for place, match in _lines()})
    assert lines == seen, "a `Paper:` line belongs in the docstring of the function that is the equation's home"


def _lines() -> Iterator[tuple[str, str]]:
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, DEFINITIONS):
                for match in LINE.finditer(ast.get_docstring(node) or ""):
                    yield f"{source.path}:{node.lineno}", match[0]
