"""How much of the bank each client of a heterogeneous federation works with."""

from __future__ import annotations

import pytest
from small_federation import LLAMA, VIT, several

from fedquilt.bank.geometry import Geometry
from fedquilt.bank.merge import exchange_bytes
from fedquilt.core.errors import ConfigError


def test_the_bank_is_as_deep_as_the_deepest_client_and_as_wide_as_the_largest_rank():
    federation = several((VIT, LLAMA), rank=3).federation
    shape = Geometry(federation)
    assert (shape.num_slots, shape.size, set(shape.every_site)) == (4, 3, {"query", "value"})
    first, last = federation.profiles[0], federation.profiles[-1]
    assert (shape.rank(first), shape.width(first)) == (3, 3)
    assert shape.trained_layers(first) == [3]  # a budget of one of four layers
    assert shape.trained_layers(last) == [1, 2]
    assert Geometry(federation, slots=7).num_slots == 7


def test_a_budget_of_bytes_narrows_the_cores_and_no_layer_may_be_beyond_the_slots():
    federation = several((VIT, LLAMA), rank=3).federation
    narrow = Geometry(federation, max_bytes=exchange_bytes(4, 2, 4))
    assert (narrow.size, narrow.rank(federation.profiles[0])) == (2, 3)
    Geometry(federation).refuse_deep("method.alignment = 'top'")
    with pytest.raises(ConfigError, match=r"method.alignment = 'top': vit-4x8 has 4 layers and the bank 3 slots"):
        Geometry(federation, slots=3).refuse_deep("method.alignment = 'top'")
