"""Types of value that keys of several sections and settings of methods have; every one has two ends.

Their upper ends are far above what anybody wants, and low enough for whatever counts, multiplies or makes a list of
them.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field

MOST = 1_000_000_000
LARGEST = 1e38

Count = Annotated[int, Field(ge=1, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
Rounds = Annotated[int, Field(ge=1, le=1_000_000)]
FromRound = Annotated[int, Field(ge=0, le=1_000_000)]
Members = Annotated[int, Field(ge=1, le=100_000)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Layers = Annotated[int, Field(ge=1, le=1000)]
Few = Annotated[int, Field(ge=1, le=100)]
Rank = Annotated[int, Field(ge=1, le=16_384)]
RankOrZero = Annotated[int, Field(ge=0, le=16_384)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Rate = Annotated[float, Field(gt=0, le=LARGEST)]
Strength = Annotated[float, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, lt=1)]
Part = Annotated[float, Field(ge=0, le=1)]
# of settings that multiply or divide something whose size is not known beforehand, far from a float's own ends: the
# square of 1e-200 is 0
Factor = Annotated[float, Field(ge=1e-6, le=MOST)]
Penalty = Annotated[float, Field(ge=0, le=MOST)]
Kept = Annotated[float, Field(gt=0, le=1)]
# a null byte ends a text for the operating system, and opens no file
Written = Annotated[str, Field(max_length=4096, pattern=r"\A[^\x00]*\z")]
Text = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"\A[^\x00]*\z")]


class With(NamedTuple):
    """In the type of a setting: something comes of it only where another one, ``key``, has one of these ``values``."""

    key: str
    values: tuple[Any, ...]


STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
