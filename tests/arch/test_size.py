"""A module is one idea, a page or two of code; a function fits on a screen.

A function's lines are those of its body, inner functions included: its signature and docstring say what it does, and a
method's settings are all documented there, so a limit on them would only make them tell less. A table of values (the
right side of an assignment at the top of a module) is no function and has no limit but its module's.
"""

from __future__ import annotations

import ast

from project_sources import sources

MODULE, FUNCTION = 300, 75


def too_long() -> dict[str, int]:
    """Every module and function over its limit, with its number of lines."""
    found = {}
    for source in sources():
        if (lines := len(source.text.splitlines())) > MODULE:
            found[source.path] = lines
        functions = (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        for node in functions:
            if (lines := body_lines(node)) > FUNCTION:
                found[f"{source.path} {node.name}"] = lines
    return found


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first statement after the docstring to the last."""
    documented = ast.get_docstring(function) is not None and len(function.body) > 1
    return (function.end_lineno or 0) - function.body[int(documented)].lineno + 1


def test_the_body_is_counted_without_signature_and_docstring() -> None:
    (function,) = ast.parse('def f(\n    a,\n):\n    """Two\n    lines."""\n    b = a\n\n    return b\n').body
    assert isinstance(function, ast.FunctionDef)
    assert body_lines(function) == 3


def test_no_module_and_no_function_is_too_long() -> None:
    assert len(list(sources())) > 100
    assert not too_long(), f"over {MODULE} lines a module or {FUNCTION} a function; which idea moves out? {too_long()}"
