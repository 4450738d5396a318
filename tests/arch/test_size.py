"""A module is one idea, a page or two of code; a function fits on a screen.

A function's lines are counted from its ``def`` to its end, docstring included. A table of values (the right side of an
assignment at the top of a module) is no function and has no limit but its module's.
"""

from __future__ import annotations

import ast

from project_sources import sources

MODULE, FUNCTION = 300, 80

STILL_LONG = {
    "fedquilt/methods/h2tune.py h2tune",
    "fedquilt/methods/heterotune.py heterotune",
}
"""Modules and functions over the limit until they are shortened; whoever shortens one takes its line out."""


def too_long() -> dict[str, int]:
    """Every module and function over its limit, with its number of lines."""
    found = {}
    for source in sources():
        if (lines := len(source.text.splitlines())) > MODULE:
            found[source.path] = lines
        functions = (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        for node in functions:
            if (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION:
                found[f"{source.path} {node.name}"] = lines
    return found


def test_no_module_and_no_function_is_too_long() -> None:
    new = {name: lines for name, lines in too_long().items() if name not in STILL_LONG}
    assert not new, f"over {MODULE} lines a module or {FUNCTION} a function; which idea moves out? {new}"


def test_what_was_shortened_is_no_longer_excused() -> None:
    excused = STILL_LONG - too_long().keys()
    assert not excused, f"short enough now, so take these lines out of STILL_LONG: {sorted(excused)}"
