"""Types of settings: numbers with bounds, and texts that are valid for the operating system.

A setting is defined once, where it is used: as a field of a frozen dataclass or an argument of a method's factory,
with its type, bounds, default and meaning. The run file's sections are these dataclasses, and ``fedquilt.config``
checks the user's values against them. The bounds are those of ``annotated_types``; nothing here needs pydantic.

Upper bounds are far above any sensible value, and low enough for all code that counts, multiplies or allocates by them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

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


class Unless(NamedTuple):
    """In the type of a setting: it has no effect where another one, ``key``, has this ``value``."""

    key: str
    value: Any


class With(NamedTuple):
    """Condition on a setting: it has an effect only where another setting, ``key``, has one of these ``values``."""

    key: str
    values: tuple[Any, ...]
