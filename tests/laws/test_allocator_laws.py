"""What every allocator of layers promises. A new one joins by a line in ALLOCATORS."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.allocate.layers import SHAPES, counts, cover, draw, gd_set, inclusion, madow, odds
from fedquilt.core.rng import Rng

ALLOCATORS = {
    **{shape: lambda weights, budget, rng, shape=shape: gd_set(shape, len(weights), budget) for shape in SHAPES},
    "draw": lambda weights, budget, rng: draw(odds(weights), budget, rng),
    "madow": madow,
}

every_allocator = pytest.mark.parametrize("allocate", ALLOCATORS.values(), ids=ALLOCATORS.keys())
laws = settings(deadline=None)
weights_of = st.lists(st.integers(0, 5) | st.floats(1e-6, 1e6), min_size=1, max_size=48).filter(any)
streams = st.builds(Rng, st.integers(0, 2**40), st.just(("round", 3, "client", 5)))


@every_allocator
@laws
@given(weights_of, st.data(), streams)
def test_the_budget_is_kept_and_the_stream_replays(allocate, weights, data, rng):
    budget = data.draw(st.integers(1, len(weights)))
    layers = allocate(weights, budget, rng)
    assert len(layers) == budget
    assert list(layers) == sorted(set(layers))
    assert set(layers) <= set(range(len(weights)))
    assert all(type(layer) is int for layer in layers)
    assert allocate(weights, budget, Rng(rng.seed, rng.path)) == layers


@laws
@given(weights_of, streams)
def test_draws_from_one_stream_are_nested(weights, rng):
    sets = [set(draw(odds(weights), budget, rng)) for budget in range(1, len(weights) + 1)]
    assert all(small < large for small, large in pairwise(sets))


@pytest.mark.parametrize("allocate", [ALLOCATORS["draw"], madow], ids=["draw", "madow"])
@laws
@given(weights_of, st.data(), streams)
def test_a_layer_without_weight_waits_for_those_with(allocate, weights, data, rng):
    budget = data.draw(st.integers(1, len(weights)))
    chosen = allocate(weights, budget, rng)
    positive = {layer for layer, weight in enumerate(weights) if weight > 0}
    assert set(chosen) <= positive or positive <= set(chosen)


@laws
@given(weights_of, st.data())
def test_inclusion_sums_to_the_budget_and_follows_the_weights(weights, data):
    budget = data.draw(st.integers(1, len(weights)))
    chances = inclusion(weights, budget)
    assert sum(chances) == pytest.approx(budget)
    assert all(0 <= chance <= 1 for chance in chances)
    below = [(weight, chance) for weight, chance in zip(weights, chances, strict=True) if chance < 1 and weight > 0]
    for weight, chance in below:
        assert chance / weight == pytest.approx(below[0][1] / below[0][0])
    assert not below or max(w for w, _ in below) <= min(
        [w for w, c in zip(weights, chances, strict=True) if c == 1] or [1e9]
    )


@laws
@given(st.sampled_from(list(SHAPES)), st.integers(1, 48), st.data())
def test_counts_are_the_sets_added_up(shape, num_layers, data):
    budgets = data.draw(st.lists(st.integers(1, num_layers), min_size=1, max_size=5))
    added = Counter(layer for budget in budgets for layer in gd_set(shape, num_layers, budget))
    assert counts(shape, num_layers, budgets) == tuple(added[layer] for layer in range(num_layers))


@laws
@given(st.integers(1, 24), st.data(), streams, st.randoms(use_true_random=False))
def test_cover_reaches_what_budgets_allow_and_keeps_them(num_layers, data, rng, random):
    sets = st.sets(st.integers(0, num_layers - 1), min_size=1).map(lambda layers: tuple(sorted(layers)))
    allocation = data.draw(st.dictionaries(st.integers(0, 99), sets, max_size=8))
    before = dict(allocation)
    fixed = cover(allocation, num_layers, rng)
    assert allocation == before
    assert fixed.keys() == allocation.keys()
    assert all(len(fixed[client]) == len(layers) for client, layers in allocation.items())
    assert all(list(layers) == sorted(set(layers)) for layers in fixed.values())
    covered = {layer for layers in fixed.values() for layer in layers}
    assert len(covered) == min(num_layers, sum(map(len, allocation.values())))
    held = {layer for layers in allocation.values() for layer in layers}
    assert held <= covered
    assert sum(len({*fixed[c]} - {*allocation[c]}) for c in fixed) == len(covered) - len(held)  # no needless exchange
    clients = list(allocation)
    random.shuffle(clients)
    assert cover({client: allocation[client] for client in clients}, num_layers, rng) == fixed
    assert cover(fixed, num_layers, rng.child("again")) == fixed
