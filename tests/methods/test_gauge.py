"""Which methods see products only: other factors of the same products change nothing for them."""

from __future__ import annotations

import pytest
import torch
from promises import Setup
from recording import gauged, recorded, weights
from small_federation import small

from fedquilt.methods import METHODS

SEE_PRODUCTS = {"flexlora": (2, 4, 3), "flora": (2, 4, 3), "fedex-lora": None}
SEE_FACTORS = {"fedit": None, "lora-fair": None, "hetlora": (2, 4, 3), "fedrpca": None}
SEE_NO_ROTATION = {"fedrot-lora": None, "florg": None}


def after_one_round(name, ranks, change):
    scene = small(budgets=(4, 4, 4), rank=4, ranks=ranks)
    method = METHODS[name](scene.federation)
    played, _ = recorded(Setup(method, scene.federation.profiles, scene.clients), change, num_rounds=1)
    view = method.view(played.states[-1], scene.federation.profiles[1])
    return weights(view.params, scene.federation.scaling)


def difference(name, ranks, change=None) -> float:
    """How far the merged weights move when all clients send other factors, in the norm of what was learned."""
    plain, other = (after_one_round(name, ranks, other) for other in (lambda reply: reply, change or gauged()))
    moved = torch.stack([(plain[module] - other[module]).norm() for module in plain]).norm()
    size = torch.stack([matrix.norm() for matrix in plain.values()]).norm()
    assert size > 1e-3
    return float(moved / size)


@pytest.mark.parametrize("name", SEE_PRODUCTS)
def test_t22_a_gauge_of_the_clients_factors_leaves_the_merged_weights(name):
    """T22: also where clients differ in rank."""
    assert difference(name, SEE_PRODUCTS[name]) < 1e-5


@pytest.mark.parametrize("name", SEE_FACTORS)
def test_t22_methods_that_average_factors_do_depend_on_it(name):
    """T22: the test would notice."""
    assert difference(name, SEE_FACTORS[name]) > 1e-2


@pytest.mark.parametrize("name", SEE_NO_ROTATION)
def test_methods_that_rotate_depend_on_any_gauge_but_a_rotation(name):
    """Also in the first round, when B is still zero at the server and only A tells the rotation."""
    assert difference(name, None, gauged(rotated=True)) < 1e-5
    assert difference(name, None) > 1e-3
    assert difference("fedit", None, gauged(rotated=True)) > 1e-2
