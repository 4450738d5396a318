"""Sections of a run file, which are pydantic models or frozen dataclasses of the packages that use them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any, TypeGuard, get_type_hints

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from fedquilt.config.strict import WITHOUT_SOURCE

Section = type
"""A subclass of pydantic's ``BaseModel``, or a frozen dataclass with the types of ``fedquilt.core.settings``."""


def is_section(kind: object) -> TypeGuard[type]:
    """Whether a type is that of a section."""
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def fields_of(section: Section) -> Mapping[str, FieldInfo]:
    """The keys of a section, with their types, defaults and meanings."""
    return keys_apart(section).model_fields


def default_of(section: Section, key: str) -> Any:
    """The default of a key."""
    return fields_of(section)[key].get_default(call_default_factory=True)


def values_of(table: Any) -> dict[str, Any]:
    """All keys of a section with their values."""
    if isinstance(table, BaseModel):
        return table.model_dump()
    return {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}


def read(section: Section, values: Mapping[str, Any], name: str) -> Any:
    """The section with these Python values, where lists and tuples are equivalent; ``name`` is its key in errors.

    Raises
    ------
    pydantic.ValidationError
        if a value is wrong, or the values contradict each other.
    """
    table = _alone(section, name).model_validate({name: dict(values)}, strict=False)
    return getattr(table, name)


@cache
def _alone(section: Section, name: str) -> type[BaseModel]:
    """A model of a file with only this section."""
    keys: dict[str, Any] = {name: (section, ...)}
    made: type[BaseModel] = create_model("File", __config__=WITHOUT_SOURCE, **keys)
    return made


@cache
def keys_apart(section: Any) -> type[BaseModel]:
    """A model of the keys of a dataclass without checks between keys, for tables that set only some of them.

    It knows which keys were set, and does not hold them against each other. A pydantic model is given back as it is.
    """
    if issubclass(section, BaseModel):
        model: type[BaseModel] = section
        return model
    hints, meanings = get_type_hints(section, include_extras=True), _meanings(section)
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        keys[field.name] = (hints[field.name], Field(description=meanings.get(field.name), **_default(field)))
    made: type[BaseModel] = create_model(f"{section.__name__}Keys", __base__=_Apart, __doc__=section.__doc__, **keys)
    _SECTION_OF[made] = section
    return made


_SECTION_OF: dict[type[BaseModel], type] = {}
"""The dataclass of each model that ``keys_apart`` has made."""


class _Apart(BaseModel):
    """The base of the models that ``keys_apart`` makes; a worker process that is sent one makes its class again."""

    model_config = WITHOUT_SOURCE

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (_SECTION_OF[type(self)], dict(self), set(self.model_fields_set))


def _again(section: type, values: dict[str, Any], given: set[str]) -> BaseModel:
    return keys_apart(section).model_construct(_fields_set=given, **values)


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    defaults = {"default": field.default, "default_factory": field.default_factory}
    return {name: value for name, value in defaults.items() if value is not dataclasses.MISSING}


def _meanings(section: Section) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of its bases."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, below in pairwise(body):
            named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[field.target.id] = inspect.cleandoc(str(below.value.value))  # type: ignore[attr-defined]
    return found
