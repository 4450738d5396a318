"""``fedquilt methods``."""

from __future__ import annotations

import inspect
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

import fedquilt
from fedquilt.cli.screen import out, show_json, show_table
from fedquilt.core.errors import ConfigError, suggestion


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's settings, paper and equations.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods, or show settings, paper and equations of one."""
    from fedquilt.methods import METHODS
    from fedquilt.methods.registry import summary_of

    if name is not None and name not in METHODS:
        raise ConfigError(f"'{name}' is not a method{suggestion(name, [*METHODS])}; allowed: {', '.join(METHODS)}")
    if name is not None:
        (show_json if as_json else _show)(described(name, METHODS[name]))
    elif as_json:
        show_json([described(one, METHODS[one]) for one in METHODS])
    else:  # imports no method: a list comes at once
        rows = [[one, summary_of(one), _paper_of(one).get("title", "")] for one in METHODS]
        show_table([["method", "what it does", "paper"], *rows])


def described(name: str, factory: Any) -> dict[str, Any]:
    """Return a method's name, summary, docstring, settings and paper as JSON values."""
    from fedquilt.config.arguments import kind_in_words
    from fedquilt.methods.registry import summary_of

    text = inspect.getdoc(factory) or ""
    parameters = inspect.signature(factory, eval_str=True).parameters.values()
    return {
        "name": name,
        "summary": summary_of(name),
        "text": text,
        "settings": {
            one.name: {"type": kind_in_words(one.annotation), "default": one.default}
            for one in parameters
            if one.kind is inspect.Parameter.KEYWORD_ONLY
        },
        "paper": _paper_of(name),
    }


def _paper_of(name: str) -> dict[str, Any]:
    """Return the paper of a method; empty if it has none."""
    return next((paper for paper in papers().values() if name in paper["methods"]), {})


@cache
def papers() -> dict[str, dict[str, Any]]:
    """Return the papers that fedquilt implements, by key, from ``papers.toml``."""
    inside = resources.files(fedquilt) / "assets" / "papers.toml"
    # an editable install reads the checkout's own file
    text = inside.read_text() if inside.is_file() else (Path(fedquilt.__file__).parents[2] / "papers.toml").read_text()
    return {paper["key"]: paper for paper in tomllib.loads(text)["paper"]}


def _show(one: dict[str, Any]) -> None:
    out.print(f"{one['name']}: {one['summary']}\n\n{one['text']}\n", markup=False, highlight=False, soft_wrap=True)
    rows = [[key, setting["type"], str(setting["default"])] for key, setting in one["settings"].items()]
    if rows:
        show_table([["setting", "type", "default"], *rows], "[method]")
    paper = one["paper"]
    if paper:
        out.print(
            f"{paper['title']} ({paper.get('year', '')}) {paper.get('link', '')}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        for equation in paper.get("equation", []):
            out.print(f"  {equation['id']}: {equation['words']}", markup=False, highlight=False, soft_wrap=True)
