"""Types of settings: numbers with bounds, and texts that are valid for the operating system; and their check.

A setting is defined once, where it is used: as a field of a frozen dataclass or an argument of a method's factory,
with its type, bounds, default and meaning. The run file's sections are these dataclasses, and ``fedquilt.config``
checks the user's values against them. The bounds are those of ``annotated_types``; nothing here needs pydantic.
Settings that are made in Python check themselves with ``problems_of``.

Upper bounds are far above any sensible value, and low enough for all code that counts, multiplies or allocates by them.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from fedquilt.core.errors import suggestion, written

_Part = TypeVar("_Part")

MOST = 1_000_000_000
LARGEST = 1e38

Count = Annotated[int, Ge(1), Le(MOST)]
Whole = Annotated[int, Ge(0), Le(MOST)]
Rounds = Annotated[int, Ge(1), Le(1_000_000)]
FromRound = Annotated[int, Ge(0), Le(1_000_000)]
Members = Annotated[int, Ge(1), Le(100_000)]
Tokens = Annotated[int, Ge(1), Le(1_000_000)]
Layers = Annotated[int, Ge(1), Le(1000)]
Slots = Annotated[int, Ge(1), Le(256)]
Few = Annotated[int, Ge(1), Le(100)]
Rank = Annotated[int, Ge(1), Le(16_384)]
RankOrZero = Annotated[int, Ge(0), Le(16_384)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Rate = Annotated[float, Gt(0), Le(LARGEST)]
Strength = Annotated[float, Ge(0), Le(LARGEST)]
Share = Annotated[float, Ge(0), Lt(1)]
Part = Annotated[float, Ge(0), Le(1)]
Bound = Annotated[float, Ge(-LARGEST), Le(LARGEST)]
# settings that multiply or divide values of unknown size: far from the limits of floats, as the square of 1e-200 is 0
Factor = Annotated[float, Ge(1e-6), Le(MOST)]
Positive = Annotated[float, Gt(0), Le(MOST)]
Penalty = Annotated[float, Ge(0), Le(MOST)]
Kept = Annotated[float, Gt(0), Le(1)]


class Matches(NamedTuple):
    """Bound on a text: a regular expression that it must match, in the syntax common to ECMAScript and Rust."""

    pattern: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Pass the pattern to pydantic, which looks for a method of this name."""
        return {**handler(source), "pattern": self.pattern}


# to the operating system a null byte ends a text, so that no file name may contain one
_NO_NULL = Matches(r"^[^\x00]*$")
Written = Annotated[str, MaxLen(4096), _NO_NULL]
Text = Annotated[str, MinLen(1), MaxLen(4096), _NO_NULL]
PERCENT = r"^(100|[1-9][0-9]?)%$"
Percent = Annotated[str, Matches(PERCENT)]


class Unless(NamedTuple):
    """In the type of a setting: it has no effect where another one, ``key``, has this ``value``."""

    key: str
    value: Any


class With(NamedTuple):
    """Condition on a setting: it has an effect only where another setting, ``key``, has one of these ``values``."""

    key: str
    values: tuple[Any, ...]


def part_of(settings: Any, kind: type[_Part], **changes: Any) -> _Part:
    """The settings of this kind: with the values that ``settings`` has for its fields, and the changes."""
    names = [field.name for field in dataclasses.fields(kind) if hasattr(settings, field.name)]  # type: ignore[arg-type]
    return kind(**{name: getattr(settings, name) for name in names} | changes)


def problems_of(settings: Any, section: str) -> list[str]:
    """What is wrong with the fields of a settings dataclass by their types, as messages with ``section.key``.

    A subclass may narrow the type of a field; the bounds that its base states hold too.
    """
    found: list[str] = []
    made: Any = type(settings)
    for key, kind in _types(made):
        value = getattr(settings, key)
        for wrong, own in _unfit(value, kind):
            text = written(wrong)
            near = suggestion(wrong, get_args(own)) if isinstance(wrong, str) and get_origin(own) is Literal else ""
            found.append(f"{section}.{key} is {text[:80]}{near}; it must be {_words(own)}")
    return list(dict.fromkeys(found))


@cache
def _types(kind: Any) -> tuple[tuple[str, Any], ...]:
    """The name and type of every field, as each class of a hierarchy of dataclasses states it."""
    return tuple(
        (field.name, get_type_hints(base, include_extras=True)[field.name])
        for field in dataclasses.fields(kind)
        for base in kind.__mro__
        if field.name in inspect.get_annotations(base)
    )


def _unfit(value: Any, kind: Any) -> list[tuple[Any, Any]]:
    """The value with its type, or the entries of a list or table with theirs, where they do not fit."""
    about = getattr(kind, "__metadata__", ())
    bare = get_args(kind)[0] if about else kind
    origin, inner = get_origin(bare), get_args(bare)
    if origin in (Union, UnionType):
        misfits = [_unfit(value, one) for one in inner if one is not type(None)]
        fits = (value is None and type(None) in inner) or not all(misfits)
        return [] if fits else misfits[0]
    if not (_is_of(value, bare, origin) and all(_within(value, bound) for bound in about)):
        return [(value, kind)]
    entries = value.values() if origin is Mapping else value if origin is tuple else ()
    return [one for entry in entries for one in _unfit(entry, inner[-1] if origin is Mapping else inner[0])]


def _is_of(value: Any, kind: Any, origin: Any) -> bool:
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in get_args(kind))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, origin or kind)


def _within(value: Any, bound: Any) -> bool:
    match bound:
        case Ge(least):
            return bool(value >= least)
        case Gt(below):
            return bool(value > below)
        case Le(most):
            return bool(value <= most)
        case Lt(above):
            return bool(value < above)
        case MinLen(fewest):
            return len(value) >= fewest
        case MaxLen(longest):
            return len(value) <= longest
        case Matches(pattern):
            return re.search(pattern, value) is not None
    return True


_NAMES = {int: "a whole number", float: "a finite number", str: "a text", bool: "True or False"}


def _words(kind: Any) -> str:
    """A type in words, with its bounds: ``a whole number of at least 1 and at most 100``."""
    about = getattr(kind, "__metadata__", ())
    bare = get_args(kind)[0] if about else kind
    if get_origin(bare) is Literal:
        return f"one of {', '.join(map(str, get_args(bare)))}"
    name = _NAMES.get(bare, "a tuple" if get_origin(bare) is tuple else "a mapping")
    numbers = {Ge: ("of at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}
    said = [f"{word} {getattr(one, key):g}" for one in about for of, (word, key) in numbers.items() if type(one) is of]
    lengths = [f"of at least {one.min_length}" for one in about if isinstance(one, MinLen)]
    lengths += [f"of at most {one.max_length}" for one in about if isinstance(one, MaxLen)]
    said += [f"{' and '.join(lengths)} {'characters' if bare is str else 'entries'}"] if lengths else []
    return " ".join([name, " and ".join(said)]).rstrip()
