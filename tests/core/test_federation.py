"""The parts of a federation by architecture, and those of the only one."""

from dataclasses import replace

import pytest

from fedquilt.core.federation import Federation
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Layout, Profile


def layout(architecture: str, num_layers: int) -> Layout:
    return Layout(architecture, num_layers, {"head": None}, {"head": (2,)})


SMALL, DEEP = layout("small", 12), layout("deep", 24)
TWO = Federation(
    tuple(Profile(number, 5, name, Budget(1), "toy") for number, name in enumerate(("small", "deep", "small"))),
    {"small": SMALL, "deep": DEEP},
    {"small": lambda rng: {}, "deep": lambda rng: {}},
    rounds=3,
    scalings={"small": lambda module, rank: 2.0, "deep": lambda module, rank: 4.0 / rank},
    proxies={"deep": object()},
    frozen={"small": frozenset({"head"})},
)


def test_what_is_by_architecture_is_read_as_one_where_there_is_one():
    small, deep = TWO.of("small"), TWO.of("deep")
    assert (small.layout, deep.layout) == (SMALL, DEEP)
    assert (small.scaling("q", 8), deep.scaling("q", 8)) == (2.0, 0.5)
    assert (small.proxy, deep.proxy) == (None, TWO.proxies["deep"])


def test_a_part_holds_nothing_of_other_architectures():
    small = TWO.of("small")
    assert [profile.id for profile in small.profiles] == [0, 2]
    assert small.frozen == TWO.frozen
    assert not small.proxies
    assert not TWO.of("deep").frozen
    for name in ("layouts", "initial", "scalings"):
        assert getattr(small, name) == {"small": getattr(TWO, name)["small"]}
    assert small.initial["small"](Rng(0)) == {}
    assert small.of("small") == small == replace(small)
    with pytest.raises(KeyError):
        small.of("deep")


@pytest.mark.parametrize("name", ["layout", "scaling", "proxy"])
def test_several_architectures_have_no_common_one(name):
    with pytest.raises(ValueError, match="too many values to unpack"):
        getattr(TWO, name)


def test_adapters_without_a_scaling_are_not_scaled():
    assert replace(TWO.of("small"), scalings={}).scaling("q", 8) == 1.0
