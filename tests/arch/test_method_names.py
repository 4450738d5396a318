"""No module outside ``methods/`` knows a method by its name: what a method can do is read from its traits."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from project_sources import sources

from fedquilt.adapters.settings import OF_KIND
from fedquilt.aggregate.lowrank.rules import RULES
from fedquilt.config.schema import Method
from fedquilt.methods import METHODS

WORDS = {"exclusive", "straggler", "full"}
"""Names that are English words: a text may hold them, but may not be one."""

ALLOWED = {
    *(("aggregate/lowrank/rules.py", rule) for rule in RULES),  # the rules' own names, at home
    *(("config/privacy.py", rule) for rule in RULES),  # the choices of aggregation.rule
    *(("aggregate/settings.py", rule) for rule in RULES),
    ("config/schema.py", Method.model_fields["name"].default),  # what a run file runs that does not say
}
"""Files and the names in them that are another thing than a method, or the default of the run file."""


def texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """Every string constant of a module that is no docstring."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node


def named(text: str) -> set[str]:
    """The methods that a text is, or that it names."""
    found = {name for name in METHODS if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)}
    return {name for name in found if name == text or name not in WORDS} - set(OF_KIND)


def test_a_text_that_names_a_method_is_noticed() -> None:
    assert named("fedit") == named("method.name = 'fedit' does") == {"fedit"}
    assert named("exclusive") == {"exclusive"}
    assert named("an exclusive lock; fedit-like; unfedit") == set()
    assert named("full") == set()  # a kind of adapter
    assert Method.model_fields["name"].default in METHODS


def test_no_module_outside_methods_names_a_method() -> None:
    found, seen = [], 0
    for source in sources():
        path = source.path.removeprefix("fedquilt/")
        if path.startswith("methods/"):
            continue
        for text in texts(source.tree):
            seen += 1
            found += [f"{source.at(text)} {name}" for name in named(text.value) if (path, name) not in ALLOWED]
    assert seen > 1000
    assert not found, "a method by its name; give it a trait (methods/traits.py):\n" + "\n".join(found)
