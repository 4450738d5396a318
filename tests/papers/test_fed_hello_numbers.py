"""Numbers of the Fed-HeLLo paper and its released configurations, and small cases worked by hand."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.allocate.budget import capability_groups, fractions
from fedquilt.allocate.importance import layer_weights, three_means
from fedquilt.allocate.layers import SHAPES, _by_race, counts, draw, gd_set, inclusion, odds
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply

BUDGETS = (6, 9, 12)
ALL = tuple(range(12))

SETS = {
    "bottleneck": [(0, 1, 2, 9, 10, 11), (0, 1, 2, 3, 4, 8, 9, 10, 11), ALL],
    "triangle": [(0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5, 6, 7, 8), ALL],
    "inverted-triangle": [(6, 7, 8, 9, 10, 11), (3, 4, 5, 6, 7, 8, 9, 10, 11), ALL],
    "uniform": [(0, 2, 4, 6, 8, 10), (0, 1, 2, 4, 5, 6, 8, 9, 10), ALL],
}
COUNTS = {
    "bottleneck": (3, 3, 3, 2, 2, 1, 1, 1, 2, 3, 3, 3),
    "triangle": (3, 3, 3, 3, 3, 3, 2, 2, 2, 1, 1, 1),
    "inverted-triangle": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3),
    "uniform": (3, 2, 3, 1, 3, 2, 3, 1, 3, 2, 3, 1),
}


def test_every_shape_has_numbers_here():
    assert set(SETS) == set(COUNTS) == set(SHAPES)


@pytest.mark.parametrize("shape", SETS)
def test_sets_of_twelve_layers(shape):
    assert [gd_set(shape, 12, budget) for budget in BUDGETS] == SETS[shape]


@pytest.mark.parametrize("shape", COUNTS)
def test_counts_are_twenty_sevenths(shape):
    assert counts(shape, 12, BUDGETS) == COUNTS[shape]
    assert sum(COUNTS[shape]) == 27


def test_the_bottleneck_is_the_released_prior():
    ninth, two, one = 1 / 9, 2 / 27, 1 / 27
    released = [ninth, ninth, ninth, two, two, one, one, one, two, ninth, ninth, ninth]
    assert odds(counts("bottleneck", 12, BUDGETS)) == pytest.approx(released, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "num_clients", "expected"),
    [("1-1-1", 100, {6: 33, 9: 33, 12: 34}), ("6-3-1", 100, {6: 60, 9: 30, 12: 10})],
)
def test_groups_of_the_paper(text, num_clients, expected):
    layers = [budget.layers for budget in capability_groups(fractions(text), BUDGETS, num_clients)]
    assert {budget: layers.count(budget) for budget in BUDGETS} == expected
    assert layers == sorted(layers)


def sequential_inclusion(weights, budget):
    """Exact inclusion by weight class when layers are drawn one after another: a recursion over how many are left."""
    classes = sorted(set(weights), reverse=True)
    number = tuple(weights.count(weight) for weight in classes)

    @cache
    def expected(left, draws):
        if not draws:
            return (Fraction(0),) * len(classes)
        total = sum(weight * n for weight, n in zip(classes, left, strict=True))
        result = [Fraction(0)] * len(classes)
        for place, (weight, n) in enumerate(zip(classes, left, strict=True)):
            if n:
                probability = Fraction(weight * n, total)
                later = expected((*left[:place], n - 1, *left[place + 1 :]), draws - 1)
                for other, value in enumerate(later):
                    result[other] += probability * (value + (other == place))
        return tuple(result)

    return {w: float(e) / n for w, e, n in zip(classes, expected(number, budget), number, strict=True)}


@pytest.mark.parametrize(
    ("budget", "fixture"), [(6, {3: 0.626, 2: 0.477, 1: 0.271}), (9, {3: 0.875, 2: 0.755, 1: 0.496})]
)
def test_inclusion_of_the_randomised_bottleneck(budget, fixture):
    weights = COUNTS["bottleneck"]
    exact = sequential_inclusion(weights, budget)
    assert exact == pytest.approx(fixture, abs=0.003)
    noise = Rng(0, ("papers", budget)).numpy().gumbel(size=(20_000, 12))
    share = np.bincount(_by_race(odds(weights), noise)[:, :budget].ravel(), minlength=12) / len(noise)
    for weight, probability in exact.items():
        assert share[np.array(weights) == weight].mean() == pytest.approx(probability, abs=0.01)


def test_first_draw_has_the_odds_themselves():
    weights = COUNTS["bottleneck"]
    assert sequential_inclusion(weights, 1) == pytest.approx({3: 3 / 27, 2: 2 / 27, 1: 1 / 27})
    times = np.bincount([draw(odds(weights), 1, Rng(s))[0] for s in range(4000)], minlength=12)
    assert np.abs(times / 4000 - np.array(weights) / 27).max() < 0.02


def test_systematic_sampling_of_the_bottleneck():
    for budget, expected in ((6, {3: 2 / 3, 2: 4 / 9, 1: 2 / 9}), (9, {3: 1, 2: 2 / 3, 1: 1 / 3})):
        weights = COUNTS["bottleneck"]
        assert inclusion(weights, budget) == pytest.approx([expected[weight] for weight in weights])


def test_three_means_by_hand():
    # {0, 1}, {4, 5}, {10}: 0.5 + 0.5 + 0 = 1; the next best, {0, 1, 4}, {5}, {10}, costs 26/3
    assert three_means([4, 0, 10, 1, 5]) == (1, 0, 2, 0, 1)
    assert layer_weights([4, 0, 10, 1, 5]) == (2, 1, 3, 1, 2)
    assert odds(layer_weights([4, 0, 10, 1, 5])) == pytest.approx([2 / 9, 1 / 9, 3 / 9, 1 / 9, 2 / 9])


def test_layer_mean_by_hand():
    base = {"l0": torch.tensor([1.0]), "l1": torch.tensor([1.0]), "l2": torch.tensor([1.0])}
    replies = [
        Reply(0, {"l0": torch.tensor([3.0])}, 100),
        Reply(1, {"l0": torch.tensor([7.0]), "l1": torch.tensor([5.0])}, 300),
    ]
    by_examples = {name: tensor.item() for name, tensor in layerwise_mean(base, replies).items()}
    assert by_examples == {"l0": 6.0, "l1": 5.0, "l2": 1.0}  # (100*3 + 300*7) / 400
    uniform = {name: tensor.item() for name, tensor in layerwise_mean(base, replies, "uniform").items()}
    assert uniform == {"l0": 5.0, "l1": 5.0, "l2": 1.0}


def test_error_of_the_mean_of_factors_is_their_cross_covariance():
    # mean(B) mean(A) - mean(B A) = -sum p (B - mean B)(A - mean A)
    generator = torch.Generator().manual_seed(0)
    examples = torch.tensor([10.0, 20.0, 70.0], dtype=torch.float64)
    clients = [
        {
            "A": torch.randn(4, 7, generator=generator, dtype=torch.float64),
            "B": torch.randn(5, 4, generator=generator, dtype=torch.float64),
        }
        for _ in examples
    ]
    base = {"A": torch.zeros(4, 7, dtype=torch.float64), "B": torch.zeros(5, 4, dtype=torch.float64)}
    mean = layerwise_mean(base, [Reply(i, c, examples[i].item()) for i, c in enumerate(clients)])
    p = examples / examples.sum()
    ideal = sum(p[i] * c["B"] @ c["A"] for i, c in enumerate(clients))
    spread = sum(p[i] * (c["B"] - mean["B"]) @ (c["A"] - mean["A"]) for i, c in enumerate(clients))
    torch.testing.assert_close(mean["B"] @ mean["A"] - ideal, -spread, rtol=1e-12, atol=1e-12)
    # a factor that all share makes the mean exact
    common = [{**client, "A": clients[0]["A"]} for client in clients]
    mean = layerwise_mean(base, [Reply(i, c, examples[i].item()) for i, c in enumerate(common)])
    ideal = sum(p[i] * c["B"] @ c["A"] for i, c in enumerate(common))
    torch.testing.assert_close(mean["B"] @ mean["A"], ideal, rtol=1e-12, atol=1e-12)
