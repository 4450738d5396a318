"""A module is one idea, a page or two of code; a function fits on a screen.

A function's lines are all of its lines: signature, docstring, body and inner functions. A table of values (the right
side of an assignment at the top of a module) is no function and has no limit but its module's.
"""

from __future__ import annotations

import ast

from project_sources import sources

MODULE, FUNCTION = 300, 80


def too_long() -> dict[str, int]:
    """Every module and function over its limit, with its number of lines."""
    found = {}
    for source in sources():
        if (lines := len(source.text.splitlines())) > MODULE:
            found[source.path] = lines
        functions = (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        for node in functions:
            if (lines := span(node)) > FUNCTION:
                found[f"{source.path} {node.name}"] = lines
    return found


def span(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the line of ``def`` to the last one."""
    return (function.end_lineno or 0) - function.lineno + 1


def test_signature_docstring_and_inner_functions_are_counted() -> None:
    text = '@once\ndef f(\n    a,\n):\n    """Two\n    lines."""\n    def g():\n        return a\n\n    return g\n'
    (function,) = ast.parse(text).body
    assert isinstance(function, ast.FunctionDef)
    assert span(function) == 9


def test_no_module_and_no_function_is_too_long() -> None:
    assert len(list(sources())) > 100
    assert not too_long(), f"over {MODULE} lines a module or {FUNCTION} a function; which idea moves out? {too_long()}"
