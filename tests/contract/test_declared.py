"""A state that is not of its declared type is found."""

from typing import Any, NotRequired, TypedDict

import pytest
import torch
from declared import declared, misfit
from torch import Tensor


class Inner(TypedDict):
    odds: list[float] | None


class State(Inner):
    parts: dict[str, Tensor]
    inner: NotRequired[Inner]
    free: Any


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"added": 1}, None),
        ({"odds": [1, 0.5], "inner": {"odds": None}}, None),
        ({"odds": [1, "x"]}, "state.odds[1] is str, not float"),
        ({"inner": {}}, "state.inner lacks ['odds']"),
        ({"parts": {"a": 1.0}}, "state.parts.a is float, not Tensor"),
        ({"parts": None}, "state.parts is NoneType, not dict"),
    ],
)
def test_the_first_misfit_is_named(change, expected):
    state = {"odds": None, "parts": {"a": torch.ones(1)}, "free": 3, **change}
    assert misfit(state, State, "state") == expected


def test_a_function_declares_its_result():
    def typed() -> State: ...

    assert declared(typed) is State
    assert declared(lambda: None) is Any
