"""Whether a state holds what its type declares."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict


def misfit(value: Any, hint: Any, where: str) -> str | None:
    """The first part of a tree that is not of the declared type; entries that a wrapper adds may stand beside it."""
    if hint is Any:
        return None
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        found = [misfit(value, inner, where) for inner in arguments]
        return None if None in found else found[0]
    plain = dict if is_typeddict(hint) else NoneType if hint is None else kind
    if not isinstance(value, (int, float) if plain is float else plain):
        return f"{where} is {type(value).__name__}, not {plain.__name__}"
    parts: list[tuple[Any, Any, str]] = []
    if is_typeddict(hint):
        if lacking := hint.__required_keys__ - value.keys():
            return f"{where} lacks {sorted(lacking)}"
        parts = [(value[key], inner, f"{where}.{key}") for key, inner in get_type_hints(hint).items() if key in value]
    elif plain is dict and arguments:
        parts = [(inner, arguments[1], f"{where}.{key}") for key, inner in value.items()]
    elif plain is list and arguments:
        parts = [(inner, arguments[0], f"{where}[{number}]") for number, inner in enumerate(value)]
    return next((fault for part in parts if (fault := misfit(*part))), None)


def declared(function: Callable[..., Any]) -> Any:
    """The type that a function returns by its signature, ``Any`` if it does not say."""
    return get_type_hints(function).get("return", Any)
