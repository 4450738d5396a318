"""Errors of pydantic in terms of the run file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedquilt.config.toml import as_written
from fedquilt.core.errors import suggestion, written
from fedquilt.core.settings import PERCENT

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a table",
    "model": "a table of keys",
    "dataclass": "a table of keys",
    "none": "left out",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_PATTERNS = {PERCENT: "must be a share from '1%' to '100%'"}
"""What texts must match, by the pattern."""

_BRANCHES = ("int", "float", "bool", "str", "constrained-int", "constrained-float", "constrained-str")


def shown(value: Any) -> str:
    """The value as a run file writes it, cut after 80 characters."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else written(value)
    return text if len(text) <= 80 else text[:77] + "..."


def unknown(key: str, value: Any, allowed: Sequence[str]) -> str:
    """The message for an unknown key."""
    return f"{key} = {shown(value)}: {_unknown(key, allowed)}"


def from_validation(
    error: ValidationError, prefix: str = "", allowed: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, ...]:
    """One line for each wrong key, in the order of the schema.

    ``prefix`` is the key of the validated value. ``allowed`` holds the allowed keys of each table by its key, which is
    ``name[]`` for a list of tables. A key that may have several types gets one line that names them all.
    """
    return from_details(error.errors(include_url=False), prefix, allowed)


def from_details(
    found: Sequence[ErrorDetails], prefix: str = "", allowed: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, ...]:
    """The lines of ``from_validation`` for a list of error details."""
    lines: dict[str, tuple[Any, list[str]]] = {}
    for details in filter(lambda details: not _is_idle(details, found), found):
        key, text = _said(details, prefix, allowed or {})
        texts = lines.setdefault(key, (details["input"], []))[1]
        if text not in texts:
            texts.append(text)
    return tuple(_line(key, value, texts) for key, (value, texts) in lines.items())


def _is_idle(details: ErrorDetails, found: Sequence[ErrorDetails]) -> bool:
    """Whether an error says of a value of one type what is wrong with it as another.

    That a list is none of the choices of a key, of which others say what a list must hold; or that a number out of
    bounds is no text.
    """
    if details["type"] == "string_type" and isinstance(details["input"], int):
        return any(other["type"] in _BOUNDS and other["loc"][:-1] == details["loc"][:-1] for other in found)
    if details["type"] != "literal_error" or not isinstance(details["input"], list | tuple):
        return False
    above = details["loc"][:-1]  # the last part names the branch of the union
    return any(other is not details and other["loc"][: len(above)] == above for other in found)


def _line(key: str, value: Any, texts: list[str]) -> str:
    if texts[0].startswith("unknown key"):
        return f"{key} = {shown(value)}: {texts[0]}"
    if texts[0].startswith("missing") or (isinstance(value, dict) and not texts[0].startswith("must be")):
        return f"{key}: {'; '.join(texts)}"
    return f"{key} = {shown(value)}: {' or '.join(texts)}"


def _said(details: ErrorDetails, prefix: str, allowed: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    location = [part for part in details["loc"] if not _is_branch(part)]
    key = _joined(prefix, location)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return key, _unknown(key, allowed.get(re.sub(r"\[[0-9]+\]", "[]", _joined(prefix, location[:-1])), ()))
    if kind == "missing":
        table = _joined(prefix, location[:-1])
        return key, f"missing; it has no default, so give it under [{table or key}]"
    if kind == "value_error":
        return key, str(context["error"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = suggestion(value, choices) if isinstance(value, str) else ""
        return key, f"not one of the choices{near}; allowed: {context['expected']}"
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        return key, f"must be {word} {context[name]}"
    if kind == "too_short":
        return key, f"must have at least {context['min_length']} entry"
    if kind == "too_long":
        return key, f"must have at most {context['max_length']} entries"
    if kind == "string_too_short":
        return key, "must not be empty"
    if kind == "string_too_long":
        return key, f"must have at most {context['max_length']} characters"
    if kind == "string_pattern_mismatch":
        return key, _PATTERNS.get(context["pattern"], "must hold no null character")
    if kind == "finite_number":
        return key, "must be a finite number"
    wanted = _KINDS.get(kind.split("_")[0])
    return key, f"must be {wanted}{_instead(value)}" if wanted else details["msg"]


def _unknown(key: str, allowed: Sequence[str]) -> str:
    near = suggestion(key.rsplit(".", 1)[-1], allowed)
    return f"unknown key{near}; allowed: {', '.join(allowed) or 'no keys'}"


def _instead(value: Any) -> str:
    for python_type, words in ((bool, "true or false"), (str, "text in quotes"), (list, "a list"), (dict, "a table")):
        if isinstance(value, python_type):
            return f", not {words}"
    return ", not a number with a decimal point" if isinstance(value, float) else ""


def _is_branch(part: str | int) -> bool:
    # pydantic names the branch of a union ("int", "tuple[int, ...]", "literal['a']"); the user's keys hold no brackets
    return isinstance(part, str) and (part in _BRANCHES or "[" in part)


def _joined(prefix: str, location: Sequence[str | int]) -> str:
    return as_written((prefix, *location) if prefix else tuple(location))
