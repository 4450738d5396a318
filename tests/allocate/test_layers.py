from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from fedquilt.allocate.layers import SHAPES, _by_race, counts, cover, draw, gd_set, inclusion, madow, odds
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng

BUDGETS = (6, 9, 12)
NESTED = ("triangle", "inverted-triangle", "bottleneck")


# gd_set


@pytest.mark.parametrize("shape", SHAPES)
def test_sets_have_the_size_of_the_budget_and_are_sorted(shape):
    for num_layers in range(1, 49):
        for budget in range(1, num_layers + 1):
            for base in ("input", "output"):
                layers = gd_set(shape, num_layers, budget, base)
                assert len(layers) == budget == len(set(layers))
                assert list(layers) == sorted(layers)
                assert layers[0] >= 0
                assert layers[-1] < num_layers


@pytest.mark.parametrize("shape", NESTED)
def test_a_larger_budget_holds_the_smaller(shape):
    for num_layers in range(2, 49):
        sets = [set(gd_set(shape, num_layers, budget)) for budget in range(1, num_layers + 1)]
        assert all(small < large for small, large in pairwise(sets))


@pytest.mark.parametrize("shape", SHAPES)
def test_full_budget_is_all_layers(shape):
    assert all(gd_set(shape, num_layers, num_layers) == tuple(range(num_layers)) for num_layers in range(1, 49))


def test_base_at_the_output_turns_triangles_over_and_nothing_else():
    assert gd_set("triangle", 12, 4, "output") == (8, 9, 10, 11) == gd_set("inverted-triangle", 12, 4)
    assert gd_set("inverted-triangle", 12, 4, "output") == (0, 1, 2, 3) == gd_set("triangle", 12, 4)
    for shape in ("bottleneck", "uniform"):
        assert gd_set(shape, 12, 5, "output") == gd_set(shape, 12, 5)


def test_a_misspelt_shape_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"method\.shape is 'botleneck'.*\(did you mean 'bottleneck'\?\)"):
        gd_set("botleneck", 12, 6)
    with pytest.raises(ConfigError, match=r"method\.base is 'top'; it must be one of input, output"):
        gd_set("triangle", 12, 6, "top")


@pytest.mark.parametrize("budget", [0, 13, -1])
def test_a_budget_outside_the_model_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget is {budget}; it must be from 1 to 12"):
        gd_set("triangle", 12, budget)
    with pytest.raises(ValueError, match=f"budget is {budget}; it must be from 1 to 12"):
        draw([1 / 12] * 12, budget, Rng(0))
    with pytest.raises(ValueError, match=f"budget is {budget}; it must be from 1 to 12"):
        madow([1] * 12, budget, Rng(0))


# counts and odds


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_layers", [4, 12, 24, 31])
def test_counts_add_up_to_the_budgets(shape, num_layers):
    budgets = (1, num_layers // 2, num_layers)
    result = counts(shape, num_layers, budgets)
    assert len(result) == num_layers
    assert sum(result) == sum(budgets)


def test_layers_of_no_group_keep_their_place():
    assert counts("triangle", 8, [2, 4]) == (2, 2, 1, 1, 0, 0, 0, 0)
    assert counts("bottleneck", 6, [2, 4]) == (2, 1, 0, 0, 1, 2)


def test_counts_weighted_by_shares():
    parts = (Fraction(6, 10), Fraction(3, 10), Fraction(1, 10))
    weighted = counts("triangle", 12, BUDGETS, parts)
    assert weighted == (1,) * 6 + (Fraction(4, 10),) * 3 + (Fraction(1, 10),) * 3
    equal = counts("triangle", 12, BUDGETS, (Fraction(1, 3),) * 3)
    assert odds(equal) == odds(counts("triangle", 12, BUDGETS))


def test_one_share_for_each_budget():
    with pytest.raises(ValueError, match="zip"):
        counts("triangle", 12, BUDGETS, (1, 2))


def test_odds_sum_to_one():
    assert odds([1, 1, 2]) == (0.25, 0.25, 0.5)
    assert sum(odds(counts("bottleneck", 12, BUDGETS))) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1, 3], [float("nan"), 1], [float("inf"), 1], []])
def test_weights_that_are_no_odds_are_refused(weights):
    with pytest.raises(ValueError, match="at least 0 and not all 0"):
        odds(weights)


# draw


@pytest.mark.parametrize("shape", ["triangle", "inverted-triangle", "bottleneck"])
@pytest.mark.parametrize(("budget", "expected"), [(6, (0.626, 0.477, 0.271)), (9, (0.875, 0.755, 0.496))])
def test_inclusion_by_weight_is_the_fixture(shape, budget, expected):
    weights = np.array(counts(shape, 12, BUDGETS))
    noise = Rng(0, ("inclusion", shape, budget)).numpy().gumbel(size=(20_000, 12))
    chosen = _by_race(odds(weights), noise)[:, :budget]
    share = np.bincount(chosen.ravel(), minlength=12) / len(noise)
    for weight, probability in zip((3, 2, 1), expected, strict=True):
        assert share[weights == weight].mean() == pytest.approx(probability, abs=0.01)
        assert np.abs(share[weights == weight] - probability).max() < 0.015


@pytest.mark.parametrize(("budget", "expected"), [(6, 0.5), (9, 0.75)])
def test_inclusion_of_equal_odds_is_flat(budget, expected):
    noise = Rng(0, ("flat", budget)).numpy().gumbel(size=(20_000, 12))
    share = np.bincount(_by_race([1 / 12] * 12, noise)[:, :budget].ravel(), minlength=12) / len(noise)
    assert np.abs(share - expected).max() < 0.015
    assert share.mean() == pytest.approx(expected)


def test_streams_of_different_clients_give_the_fixture_too():
    probabilities = odds(counts("bottleneck", 12, BUDGETS))
    times = Counter(layer for client in range(3000) for layer in draw(probabilities, 6, Rng(7, ("client", client))))
    high = sum(times[layer] for layer in (0, 1, 2, 9, 10, 11)) / 6 / 3000
    low = sum(times[layer] for layer in (5, 6, 7)) / 3 / 3000
    assert high == pytest.approx(0.626, abs=0.02)
    assert low == pytest.approx(0.271, abs=0.02)


def test_a_draw_depends_on_its_stream_and_on_nothing_else():
    probabilities = odds(counts("bottleneck", 12, BUDGETS))
    clients = list(range(40))

    def allocation(order, seed=1, turn=3):
        return {client: draw(probabilities, 6, Rng(seed).child("round", turn, "client", client)) for client in order}

    first = allocation(clients)
    np.random.seed(0)  # the global generator must not matter
    assert allocation(clients[::-1]) == first
    assert allocation(clients, seed=2) != first
    assert allocation(clients, turn=4) != first
    assert len(set(first.values())) > 30


@pytest.mark.parametrize("shape", SHAPES)
def test_full_budget_draws_all_layers(shape):
    for num_layers in (1, 2, 12, 48):
        probabilities = odds(counts(shape, num_layers, [1, num_layers]))
        everything = tuple(range(num_layers))
        assert draw(probabilities, num_layers, Rng(0)) == everything
        assert madow(probabilities, num_layers, Rng(0)) == everything


def test_layers_of_probability_zero_only_fill_what_is_left():
    probabilities = odds([0, 3, 0, 1, 0])
    assert {draw(probabilities, 2, Rng(seed)) for seed in range(50)} == {(1, 3)}
    thirds = Counter(next(iter({*draw(probabilities, 3, Rng(seed))} - {1, 3})) for seed in range(900))
    assert set(thirds) == {0, 2, 4}
    assert all(abs(number - 300) < 60 for number in thirds.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_bad_probabilities_are_refused(bad):
    with pytest.raises(ValueError, match="probabilities must be finite and at least 0"):
        draw([0.5, bad], 1, Rng(0))


# madow


def test_inclusion_is_proportional_until_one_is_certain():
    bottleneck = counts("bottleneck", 12, BUDGETS)
    assert inclusion(bottleneck, 6) == pytest.approx([6 * c / 27 for c in bottleneck])
    by_weight = {3: 1.0, 2: 2 / 3, 1: 1 / 3}
    assert inclusion(bottleneck, 9) == pytest.approx([by_weight[c] for c in bottleneck])


def test_capping_goes_on_until_nobody_is_above_one():
    # 3 * (60, 30, 5, 5) / 100 caps the first; 2 * (30, 5, 5) / 40 caps the second; one place is left for two
    assert inclusion([60, 30, 5, 5], 3) == pytest.approx([1, 1, 0.5, 0.5])


def test_too_few_positive_weights_share_the_rest():
    assert inclusion([2, 0, 0, 0, 1], 3) == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 1])
    assert {len(madow([2, 0, 0, 0, 1], 3, Rng(seed))) for seed in range(30)} == {3}


@pytest.mark.parametrize("budget", [1, 6, 9, 11])
def test_madow_includes_each_layer_as_often_as_it_should(budget):
    weights = counts("bottleneck", 12, BUDGETS)
    times = np.zeros(12)
    for seed in range(4000):
        times[list(madow(weights, budget, Rng(seed)))] += 1
    assert np.abs(times / 4000 - np.array(inclusion(weights, budget))).max() < 0.03


def test_madow_lets_any_two_layers_come_together():
    pairs = Counter(madow([1, 1, 1, 1], 2, Rng(seed)) for seed in range(600))
    assert len(pairs) == 6
    assert all(abs(number - 100) < 40 for number in pairs.values())


# cover


def test_a_covered_allocation_stays():
    allocation = {3: (0, 1), 1: (2, 3)}
    assert cover(allocation, 4, Rng(0)) == allocation


def test_a_layer_with_nobody_takes_the_place_of_the_most_crowded():
    allocation = {0: (0, 1), 1: (0, 2), 2: (0, 2)}
    for seed in range(20):
        fixed = cover(allocation, 4, Rng(seed))
        assert Counter(layer for layers in fixed.values() for layer in layers) == {0: 2, 1: 1, 2: 2, 3: 1}
    assert allocation == {0: (0, 1), 1: (0, 2), 2: (0, 2)}


def test_which_layers_stay_bare_when_budgets_are_too_small_is_drawn():
    bare = Counter()
    for seed in range(300):
        fixed = cover({0: (0,), 1: (0,)}, 4, Rng(seed))
        covered = {layer for layers in fixed.values() for layer in layers}
        assert len(covered) == 2
        assert 0 in covered
        bare.update({0, 1, 2, 3} - covered)
    assert set(bare) == {1, 2, 3}


def test_an_empty_cohort_has_nothing_to_cover():
    assert cover({}, 4, Rng(0)) == {}
