"""Settings that are made in Python are held to their types, as those of a run file are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from annotated_types import MaxLen, MinLen

from fedquilt.core.settings import Rank, Rate, Share, Text, part_of, problems_of


@dataclass(frozen=True)
class Keys:
    rank: Rank = 4
    rate: Rate | None = None
    share: Share = 0.0
    name: Text = "a"
    rule: Literal["mean", "median"] = "mean"
    strict: bool = False
    parts: Annotated[tuple[Literal["one", "two"], ...], MinLen(1), MaxLen(2)] = ("one",)
    ranks: Mapping[str, Rank] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved(Keys):
    rate: float = field(kw_only=True)


def test_values_of_their_types_have_no_problem() -> None:
    assert problems_of(Keys(), "x") == []
    assert problems_of(Keys(1, 1, 0, "b", "median", True, ("two", "one"), {"q": 3}), "x") == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rank": 0}, "x.rank is 0; it must be a whole number of at least 1 and at most 16384"),
        ({"rank": 20_000}, "x.rank is 20000; it must be a whole number"),
        ({"rank": 2.0}, "x.rank is 2.0; it must be a whole number"),
        ({"rank": True}, "x.rank is True; it must be a whole number"),
        ({"rank": None}, "x.rank is None; it must be a whole number"),
        ({"rate": 0.0}, "x.rate is 0.0; it must be a finite number above 0 and at most 1e+38"),
        ({"rate": float("inf")}, "x.rate is inf; it must be a finite number"),
        ({"rate": 10**400}, "x.rate is an integer of 1329 bits; it must be a finite number"),
        ({"share": float("nan")}, "x.share is nan; it must be a finite number of at least 0 and below 1"),
        ({"share": 1}, "x.share is 1; it must be"),
        ({"name": ""}, "x.name is ''; it must be a text"),
        ({"name": "a\0"}, "x.name is 'a\\x00'; it must be a text"),
        ({"rule": "meen"}, "x.rule is 'meen' (did you mean 'mean'?); it must be one of mean, median"),
        ({"rule": ["mean"]}, "x.rule is ['mean']; it must be one of mean, median"),
        ({"strict": 1}, "x.strict is 1; it must be True or False"),
        ({"parts": ()}, "x.parts is (); it must be a tuple of at least 1 and of at most 2 entries"),
        ({"parts": ["one"]}, "x.parts is ['one']; it must be a tuple"),
        ({"parts": ("one", "tow")}, "x.parts is 'tow' (did you mean 'two'?); it must be one of one, two"),
        ({"ranks": {"q": 0}}, "x.ranks is 0; it must be a whole number"),
        ({"ranks": 3}, "x.ranks is 3; it must be a mapping"),
    ],
)
def test_a_value_of_another_type_or_out_of_bounds_is_told(values, told) -> None:
    (problem,) = problems_of(Keys(**values), "x")
    assert problem.startswith(told)


def test_a_narrowed_field_keeps_the_bounds_of_its_base() -> None:
    assert problems_of(Resolved(rate=2.0), "x") == []
    (problem,) = problems_of(Resolved(rate=0.0), "x")
    assert problem.startswith("x.rate is 0.0; it must be a finite number above 0")
    assert problems_of(Resolved(rate=None), "x") == ["x.rate is None; it must be a finite number"]


def test_a_part_has_the_values_of_the_whole_and_the_changes() -> None:
    whole = Resolved(rank=8, rule="median", rate=0.5)
    assert part_of(whole, Keys) == Keys(rank=8, rule="median", rate=0.5)
    assert part_of(whole, Keys, rank=2, ranks={"q": 1}) == Keys(2, 0.5, rule="median", ranks={"q": 1})
