"""A function of many arguments says in a numpydoc section what each of them is.

Commands of ``fedquilt.cli`` are exempt: their docstring is the help text that a user reads, and typer documents each
argument and option in its ``Annotated`` type.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from project_sources import dotted, sources

FEW = 4
SECTION = re.compile(r"^Parameters\n-{10}$", re.M)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt]) -> Iterator[Function]:
    """The public functions and methods of a module or class; functions within functions are nobody else's."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from public(node.body)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def arguments(function: Function) -> list[ast.arg]:
    own = function.args
    given = [*own.posonlyargs, *own.args, *own.kwonlyargs]
    return [argument for argument in given if argument.arg not in ("self", "cls")]


def is_command(path: str, function: Function) -> bool:
    annotations = (argument.annotation for argument in arguments(function))
    return path.startswith("fedquilt/cli/") and all(
        isinstance(type_, ast.Subscript) and dotted(type_.value) == "Annotated" for type_ in annotations
    )


def of_many_arguments() -> dict[str, str]:
    """The docstring of every public function that has one and more than ``FEW`` arguments, by place."""
    return {
        f"{source.at(function)} {function.name}": told
        for source in sources()
        for function in public(source.tree.body)
        if len(arguments(function)) > FEW
        and not is_command(source.path, function)
        and (told := ast.get_docstring(function))
    }


def test_self_and_nested_functions_do_not_count_and_commands_are_exempt() -> None:
    text = "class A:\n    def f(self, a, /, b, *, c):\n        def inner(): ...\n    def _g(self): ...\n"
    f, h = public(ast.parse(text + "def h(a: Annotated[int, 1]): ...").body)
    assert [argument.arg for argument in arguments(f)] == ["a", "b", "c"]
    assert is_command("fedquilt/cli/run.py", h)
    assert not is_command("fedquilt/cli/run.py", f)
    assert not is_command("fedquilt/experiment/run.py", h)


def test_functions_of_many_arguments_have_a_parameters_section() -> None:
    found = of_many_arguments()
    assert len(found) > 50, f"only {len(found)} public functions of more than {FEW} arguments"
    without = [place for place, told in found.items() if not SECTION.search(told)]
    assert not without, f"add a section Parameters, one entry an argument: {without}"
