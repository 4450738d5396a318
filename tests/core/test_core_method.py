"""How an order becomes a model, and what of a state is recorded, unless a method says otherwise."""

from __future__ import annotations

import torch

from fedquilt.core.method import Method, overlay
from fedquilt.core.types import Budget, Order, Profile

CLIENT = Profile(0, 5, "toy", Budget(1), "toy")


def test_a_clients_own_tensor_lies_over_the_orders_and_that_over_the_initial_one():
    initial = {name: torch.zeros(2) for name in "abc"}
    order, own = Order({"b": torch.ones(2), "c": torch.ones(2)}), {"c": torch.full((2,), 2.0)}
    model = overlay(CLIENT, initial, order, {"params": own})
    assert list(model) == ["a", "b", "c"]
    assert [float(tensor[0]) for tensor in model.values()] == [0, 1, 2]
    assert overlay(CLIENT, initial, order, {})["c"] is order.params["c"]


def test_by_default_nothing_of_a_state_is_recorded():
    method = Method("toy", lambda rng: {"seed": 3, "params": {}}, (), lambda state, profile: Order({}))
    assert method.report({"seed": 3, "losses": [1.0]}) == {}
    assert method.model is overlay
