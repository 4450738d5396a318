"""What the documents promise is there: README's commands, a page and a paper for every method, docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib

from project_sources import ROOT, dotted, sources

from fedquilt.config.load import parse
from fedquilt.methods import METHODS

COMMANDS = ("make demo", "make test")
UNWRAPPED = ("run-file.md", "commands.md", "equations.md")
"""Generated pages."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_ci_runs_the_commands_that_readme_gives() -> None:
    fenced = [
        line.split("#")[0].strip()
        for block in re.findall(r"```\w*\n(.*?)```", read("README.md"), re.S)
        for line in block.splitlines()
    ]
    assert [line for line in fenced if line.startswith("make ")] == list(COMMANDS)
    steps = [
        line.split(maxsplit=1)[1].split(" ARGS=")[0]
        for line in read(".ci/run").splitlines()
        if line.startswith("step ")
    ]
    assert steps[: len(COMMANDS)] == list(COMMANDS)
    assert {"ruff check", "ruff format", "mypy", "lint-imports"} <= {
        match for step in steps for match in re.findall(r"ruff \w+|mypy|lint-imports", step)
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
        assert index.count(f"({name}.md)") == 1, f"docs/methods/README.md lists {name} once, in its group"
        if name in described:
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


def test_run_files_in_the_documents_are_right() -> None:
    blocks = [
        (page, tomllib.loads(block))
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    ]
    assert len(blocks) >= 2
    whole = [parse(block) for _, block in blocks if "model" in block]
    assert len(whole) >= 1
    for page, block in blocks:
        if method := block.get("method"):
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
