"""A factory's signature is the schema of its table."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import Field

from fedquilt.config.arguments import arguments, kind_in_words
from fedquilt.core.errors import ConfigError
from fedquilt.core.settings import Factor, FromRound, Rounds, Share
from fedquilt.methods import METHODS


def factory(
    federation: object,
    *,
    proxy: object = None,
    classes: int,
    shape: Literal["triangle", "bottleneck"] = "bottleneck",
    decay: float = 0.8,
    cover: bool = True,
    note: str | None = None,
    layers: tuple[int, ...] = (),
    floor: Annotated[int, Field(ge=1)] = 1,
    size: int | Literal["all"] = "all",
) -> None:
    """Stands for a method's factory."""


def checked(**settings):
    return arguments(factory, settings, given=("proxy",), prefix="method")


def problems(**settings) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        checked(**settings)
    return caught.value.problems


def test_defaults_are_filled_in_and_given_arguments_left_out():
    assert checked(classes=2) == {
        "classes": 2,
        "shape": "bottleneck",
        "decay": 0.8,
        "cover": True,
        "note": None,
        "layers": (),
        "floor": 1,
        "size": "all",
    }


def test_values_take_the_annotated_type():
    made = checked(classes=2, decay=1, layers=[1, 2], note="x", size=3)
    assert made["decay"] == 1.0
    assert isinstance(made["decay"], float)
    assert made["layers"] == (1, 2)
    assert (made["note"], made["size"]) == ("x", 3)


def test_every_problem_is_told_at_once():
    assert problems(shap=1, shape="triangel", decay="x") == (
        (
            "method.shap = 1: unknown key (did you mean 'shape'?); allowed: classes, shape, decay, cover, note, "
            "layers, floor, size"
        ),
        "method.classes: missing; it has no default, so give it in [method]",
        (
            "method.shape = 'triangel': not one of the choices (did you mean 'triangle'?); "
            "allowed: 'triangle' or 'bottleneck'"
        ),
        "method.decay = 'x': must be a number, not text in quotes",
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"classes": "2"}, "method.classes = '2': must be a whole number, not text in quotes"),
        ({"classes": 2.0}, "method.classes = 2.0: must be a whole number, not a number with a decimal point"),
        ({"classes": True}, "method.classes = true: must be a whole number, not true or false"),
        ({"cover": 1}, "method.cover = 1: must be true or false"),
        ({"note": 1}, "method.note = 1: must be text"),
        ({"layers": 3}, "method.layers = 3: must be a list"),
        ({"layers": [1, "b"]}, "method.layers[1] = 'b': must be a whole number, not text in quotes"),
        ({"floor": 0}, "method.floor = 0: must be at least 1"),
        ({"decay": float("inf")}, "method.decay = inf: must be a finite number"),
        ({"proxy": 3}, "method.proxy = 3: unknown key; allowed: classes, shape"),
        ({"federation": 3}, "method.federation = 3: unknown key; allowed: classes, shape"),
        (
            {"size": "al"},
            (
                "method.size = 'al': must be a whole number, not text in quotes or "
                "not one of the choices (did you mean 'all'?); allowed: 'all'"
            ),
        ),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(settings, problem):
    (found,) = problems(**{"classes": 2} | settings)
    assert found.startswith(problem)


def test_a_factory_without_settings_allows_no_keys():
    def bare(federation):
        return federation

    assert arguments(bare, {}, prefix="method") == {}
    with pytest.raises(ConfigError, match=r"partition.alpha = 0.1: unknown key; allowed: no keys"):
        arguments(bare, {"alpha": 0.1}, prefix="partition")


def test_partials_and_missing_annotations_work():
    def plain(*, a, b=2):
        return a, b

    assert arguments(plain, {"a": [1]}, prefix="method") == {"a": [1], "b": 2}
    assert arguments(partial(plain, a=5), {}, prefix="method") == {"a": 5, "b": 2}


def numeric(kind: Any) -> bool:
    return kind in (int, float) or any(numeric(inner) for inner in get_args(kind))


NUMBERS = [
    (name, key)
    for name, method in METHODS.items()
    for key, parameter in inspect.signature(method, eval_str=True).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and numeric(parameter.annotation)
]


def test_there_are_settings_of_methods_that_are_numbers():
    assert len(NUMBERS) > 20
    assert ("h2tune", "slots") in NUMBERS


@pytest.mark.parametrize("value", [10**30, -(10**30), 1e30, -1e30, math.nan, math.inf, -math.inf, True, "1", [1]])
def test_every_number_of_every_method_has_two_ends(value):
    for name, key in NUMBERS:
        with pytest.raises(ConfigError) as caught:
            arguments(METHODS[name], {key: value}, prefix="method")
        (problem,) = caught.value.problems
        assert problem.startswith(f"method.{key} = "), name
        assert ": must be " in problem, name


@pytest.mark.parametrize("key", ["width", "temperature", "shared_rate", "server_rate"])
def test_what_divides_is_not_so_small_that_its_square_is_0(key):
    with pytest.raises(ConfigError, match=f"method.{key} = 1e-200: must be at least 1e-06"):
        arguments(METHODS["h2tune"], {key: 1e-200}, prefix="method")


def test_every_default_of_every_method_is_within_its_own_bounds():
    for name, method in METHODS.items():
        made = arguments(method, {}, prefix="method")
        written = {key: value for key, value in made.items() if value is not None}
        assert arguments(method, written, prefix="method") == made, name


def test_types_are_told_with_their_bounds():
    assert [kind_in_words(kind) for kind in (Rounds, FromRound | None, Share, Factor, bool, Literal["a"])] == [
        "int from 1 to 1,000,000",
        "int from 0 to 1,000,000 | None",
        "float from 0 to below 1",
        "float from 1e-06 to 1,000,000,000",
        "bool",
        "Literal['a']",
    ]
