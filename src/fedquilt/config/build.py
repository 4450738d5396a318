"""The signature is the schema: a table of settings, checked against the callable that will take them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedquilt.config.problems import from_validation, unknown
from fedquilt.core.errors import ConfigError

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def arguments(
    factory: Callable[..., Any], settings: Mapping[str, Any], given: Collection[str] = (), *, prefix: str
) -> dict[str, Any]:
    """Every keyword-only argument of ``factory``: from ``settings``, or its default. Those in ``given`` are left out.

    Annotations are the types: numbers, strings, booleans, ``Literal``, ``| None``, ``tuple[int, ...]`` (from a list)
    and ``Annotated[..., pydantic.Field(ge=...)]``. ``prefix`` is the table's name in the run file, for the messages.

    Raises
    ------
    ConfigError
        with every unknown key, missing key and wrong value.
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
    if problems:
        raise ConfigError(problems)
    return result
