"""Checking a table of settings against the signature of the function that takes them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedquilt.config.error_text import from_validation, shown, unknown
from fedquilt.config.unused_keys import of_another
from fedquilt.core.errors import ConfigError
from fedquilt.core.settings import Unless, With

_Condition = TypeVar("_Condition", With, Unless)
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def arguments(
    factory: Callable[..., Any], settings: Mapping[str, Any], given: Collection[str] = (), *, prefix: str
) -> dict[str, Any]:
    """All keyword-only arguments of ``factory`` except ``given``: from ``settings``, or their defaults.

    Annotations are the types: numbers, strings, booleans, ``Literal``, ``| None``, ``tuple[int, ...]`` (from a list)
    and the types of ``fedquilt.core.settings``; ``With(...)`` marks an argument that only applies to one value of
    another. ``prefix`` is the table's name in the run file, for the messages.

    Raises
    ------
    ConfigError
        with every unknown key, missing key and wrong value, and every value that has no effect.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(factory, eval_str=True).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in given
    }
    problems = [
        unknown(f"{prefix}.{key}", value, tuple(parameters)) for key, value in settings.items() if key not in parameters
    ]
    result = {}
    for name, parameter in parameters.items():
        if name not in settings:
            if parameter.default is parameter.empty:
                problems.append(f"{prefix}.{name}: missing; it has no default, so give it in [{prefix}]")
            else:
                result[name] = parameter.default
            continue
        kind = Any if parameter.annotation is parameter.empty else parameter.annotation
        try:
            # as JSON: see fedquilt.config.load
            result[name] = TypeAdapter(kind, config=_STRICT).validate_json(json.dumps(settings[name], default=str))
        except ValidationError as error:
            problems += from_validation(error, prefix=f"{prefix}.{name}")
    problems = problems or [
        of_another(f"{prefix}.{name}", result[name], f"{prefix}.{key}", choices, result[key])
        for name in settings
        for key, choices in _about(parameters[name].annotation, With)
        if result[name] != parameters[name].default and result[key] not in choices
    ]
    problems = problems or [
        f"{prefix}.{name} = {shown(result[name])}: has no effect with {prefix}.{key} = {shown(value)}; leave it out"
        for name in settings
        for key, value in _about(parameters[name].annotation, Unless)
        if result[name] != parameters[name].default and result[key] == value
    ]
    if problems:
        raise ConfigError(problems)
    return result


def _about(annotation: Any, kind: type[_Condition]) -> list[_Condition]:
    """The conditions on other settings under which a setting of this type has an effect."""
    return [about for about in getattr(annotation, "__metadata__", ()) if isinstance(about, kind)]


def kind_in_words(annotation: Any) -> str:
    """The type of a setting as a table shows it, with its bounds: ``int from 1 to 1,000,000 | None``."""
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(kind_in_words(one) for one in get_args(annotation))
    if get_origin(annotation) is not Annotated:
        return "None" if annotation is type(None) else inspect.formatannotation(annotation)
    kind, *about = get_args(annotation)
    ends: dict[str, float] = {}
    for bound in about:
        ends |= {name: getattr(bound, name) for name in ("gt", "ge", "lt", "le") if hasattr(bound, name)}
    if not ends:
        return kind_in_words(kind)
    low = f"from {ends['ge']:,}" if "ge" in ends else f"above {ends['gt']:,}"
    high = f"to {ends['le']:,}" if "le" in ends else f"to below {ends['lt']:,}"
    return f"{inspect.formatannotation(kind)} {low} {high}"
