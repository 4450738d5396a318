"""What the documents promise is there: README's commands, a page and a paper for every method, docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path

from doc_blocks import PAGES, blocks, commands
from project_sources import ROOT, dotted, sources

from fedquilt.methods import METHODS

COMMANDS = ("make demo", "make test")
UNWRAPPED = ("run-file.md", "commands.md", "equations.md")
"""Generated pages."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_ci_runs_the_commands_that_readme_gives() -> None:
    fenced = [line for block in blocks(ROOT / "README.md") for line in commands(block.text)]
    assert [line for line in fenced if line.startswith("make ")] == list(COMMANDS)
    steps = [
        line.split(maxsplit=1)[1].split(" ARGS=")[0]
        for line in read(".ci/run").splitlines()
        if line.startswith("step ")
    ]
    assert steps[: len(COMMANDS)] == list(COMMANDS)
    assert {"ruff check", "ruff format", "mypy", "lint-imports", "mkdocs build"} <= {
        match for step in steps for match in re.findall(r"(?:ruff|mkdocs) \w+|mypy|lint-imports", step)
    }


def test_every_method_has_a_page_and_a_paper() -> None:
    assert len(METHODS) >= 7
    papers = tomllib.loads(read("papers.toml"))["paper"]
    described = [method for paper in papers for method in paper["methods"]]
    assert len(described) == len(set(described)) > 10
    assert set(described) <= set(METHODS)
    readme, index = read("README.md"), read("docs/methods/README.md")
    for name in METHODS:
        page = ROOT / "docs" / "methods" / f"{name}.md"
        assert page.is_file(), f"write {page.relative_to(ROOT)}"
        assert page.read_text(encoding="utf-8").startswith("# ")
        if name in described:
            assert index.count(f"({name}.md)") == 1, f"docs/methods/README.md lists {name} once, in its group"
            assert f"(docs/methods/{name}.md)" in readme, f"README's table of methods lacks {name}"


def test_links_between_documents_lead_somewhere() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not target.startswith(("http://", "https://", "mailto:"))
    ]
    assert len(links) > 10
    broken = [f"{page.relative_to(ROOT)} -> {target}" for page, target in links if not (page.parent / target).exists()]
    assert not broken, broken


def test_links_to_headings_lead_to_one() -> None:
    """As a forge names them; the strict build of the site checks those in docs/ too."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES[1:]]
    broken, seen = [], 0
    for page in pages:
        for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
            seen += 1
            if anchor not in anchors(page if not target else (page.parent / target).resolve()):
                broken.append(f"{page.relative_to(ROOT)} -> {target}#{anchor}")
    assert seen > 20
    assert not broken, broken


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    words = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", found).lower() for found in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in words}


def test_prose_lines_have_at_most_120_columns() -> None:
    pages = [page for page in ROOT.rglob("*.md") if "." not in str(page.relative_to(ROOT).parent)]
    prose, too_long = 0, []
    for page in pages:
        if page.name in UNWRAPPED:
            continue
        in_code = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("```"):
                in_code = not in_code
            if in_code or line.startswith(("|", "    ", "![")):
                continue
            prose += 1
            if len(line) > 120:
                too_long.append(f"{page.relative_to(ROOT)}:{number}")
    assert prose > 1000
    assert not too_long, "prose beyond 120 columns:\n" + "\n".join(too_long)


def test_settings_of_methods_in_the_documents_are_theirs() -> None:
    given = [
        (page, method)
        for page in PAGES
        for block in blocks(page, "toml")
        if (method := tomllib.loads(block.text).get("method"))
    ]
    assert len(given) >= 2
    for page, method in given:
        settings = inspect.signature(METHODS[method["name"]]).parameters
        assert set(method) - {"name"} <= set(settings), page


def test_a_method_page_names_every_setting() -> None:
    missing = [
        f"docs/methods/{name}.md: {parameter.name}"
        for name, factory in METHODS.items()
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and f"`{parameter.name}`" not in read(f"docs/methods/{name}.md")
    ]
    assert not missing, missing


def test_public_names_have_docstrings() -> None:
    classes = [node for source in sources() for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
    protocols = [node for node in classes if any(dotted(base) == "Protocol" for base in node.bases)]
    explained = {member.name for node in protocols for member in node.body if isinstance(member, ast.FunctionDef)}
    bare, seen = [], 0
    for source in sources():
        if any(part.startswith("_") and part != "__init__.py" for part in source.path.split("/")):
            continue
        for node in source.tree.body:
            members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
            for definition in [node, *members]:
                if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    continue
                if definition.name.startswith("_"):
                    continue
                if definition is not node and (len(definition.body) == 1 or definition.name in explained):
                    continue  # a method of one statement speaks for itself; a protocol's is explained at the protocol
                seen += 1
                if not ast.get_docstring(definition):
                    bare.append(f"{source.at(definition)} {definition.name}")
    assert seen > 100
    assert not bare, "public, but without a docstring:\n" + "\n".join(bare)
