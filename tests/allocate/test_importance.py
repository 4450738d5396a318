import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from fedquilt.allocate.importance import layer_weights, smoothed, three_means
from fedquilt.core.errors import RoundError

scores_of = st.lists(st.floats(0, 1e6), min_size=1, max_size=9)


def within(scores, ranks):
    """The sum of squared deviations from the means of the clusters."""
    scores, ranks = np.array(scores), np.array(ranks)
    return sum(((scores[ranks == rank] - scores[ranks == rank].mean()) ** 2).sum() for rank in set(ranks.tolist()))


def test_three_clear_clusters():
    assert three_means([0.1, 5.0, 0.2, 9.0, 5.1, 9.3, 0.15]) == (0, 1, 0, 2, 1, 2, 0)


def test_ties_share_a_cluster():
    assert three_means([1, 1, 1, 2, 2, 3]) == (0, 0, 0, 1, 1, 2)


def test_fewer_distinct_scores_count_down_from_the_top():
    assert three_means([4.0] * 5) == (2,) * 5
    assert three_means([0.0] * 5) == (2,) * 5
    assert three_means([1, 7, 1, 7]) == (1, 2, 1, 2)
    assert three_means([3.0]) == (2,)
    assert three_means([]) == ()


def test_other_numbers_of_clusters():
    assert three_means([1, 2, 9, 10], k=2) == (0, 0, 1, 1)
    assert three_means([1, 2, 9, 10], k=1) == (0, 0, 0, 0)
    assert three_means([1, 2, 9, 10], k=4) == (0, 1, 2, 3)


def test_scores_far_out_do_not_overflow_and_close_ones_do_not_cancel():
    assert three_means([1e300, -1e300, 0.0, 1e299]) == (2, 0, 1, 1)
    assert three_means([1e-300, 2e-300, 9e-300, 9.1e-300]) == (0, 1, 2, 2)
    assert three_means([1e9 + x for x in (0, 0.001, 1, 1.001, 2, 2.001)]) == (0, 0, 1, 1, 2, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_names_its_layer(bad):
    with pytest.raises(RoundError, match=f"score of layer 2 is {bad}"):
        three_means([1.0, 2.0, bad])


@given(scores_of)
def test_no_cut_is_better(scores):
    ranks = three_means(scores)
    values = sorted(set(scores))
    cost = within(scores, ranks)
    for cuts in combinations(range(1, len(values)), min(3, len(values)) - 1):
        other = [sum(score >= values[cut] for cut in cuts) for score in scores]
        assert cost <= within(scores, other) * (1 + 1e-9) + 1e-12 * max(scores) ** 2


def test_sklearn_is_never_better():
    generator = np.random.default_rng(0)
    for case in range(30):
        scores = generator.lognormal(sigma=1 + case % 3, size=generator.integers(4, 33))
        other = KMeans(3, n_init=10, random_state=case).fit(scores[:, None])
        assert within(scores, three_means(scores.tolist())) <= other.inertia_ * (1 + 1e-9)


@given(scores_of, st.randoms(use_true_random=False))
def test_a_higher_score_never_has_a_lower_rank_and_order_does_not_matter(scores, random):
    ranks = three_means(scores)
    by_score = [rank for _, rank in sorted(zip(scores, ranks, strict=True))]
    assert by_score == sorted(by_score)
    assert len(set(ranks)) == min(3, len(set(scores)))
    assert max(ranks) == 2
    assert all(ranks[i] == ranks[j] for i, j in combinations(range(len(scores)), 2) if scores[i] == scores[j])
    order = list(range(len(scores)))
    random.shuffle(order)
    assert three_means([scores[place] for place in order]) == tuple(ranks[place] for place in order)


def test_weights_are_one_two_three():
    assert layer_weights([0.1, 5.0, 9.0]) == (1, 2, 3)
    assert layer_weights([2.0, 2.0]) == (3, 3)


def test_logarithms_part_a_long_tail():
    scores = [1e-6, 2e-6, 1e-3, 2e-3, 1.0, 50.0]
    assert layer_weights(scores) == (1, 1, 1, 1, 2, 3)
    assert layer_weights(scores, log=True) == (1, 1, 2, 2, 3, 3)
    assert layer_weights([1000 * score for score in scores], log=True) == layer_weights(scores, log=True)


def test_logarithms_of_zero_scores():
    assert layer_weights([0.0, 0.0, 1.0, 2.0], log=True) == (1, 1, 2, 3)
    assert layer_weights([0.0, 0.0], log=True) == (3, 3)
    with pytest.raises(ValueError, match="at least 0"):
        layer_weights([-1.0, 2.0], log=True)
    with pytest.raises(RoundError, match="layer 1 is nan"):
        layer_weights([1.0, math.nan], log=True)


def test_smoothing():
    assert smoothed(None, [1, 2], 0.8) == (1.0, 2.0)
    assert smoothed((1.0, 2.0), [3, 2], 0.75) == (1.5, 2.0)
    assert smoothed((1.0, 2.0), [3, 4], 0.0) == (3.0, 4.0)
    with pytest.raises(ValueError, match="beta is 1"):
        smoothed(None, [1.0], 1)
    with pytest.raises(ValueError, match="zip"):
        smoothed((1.0,), [1.0, 2.0], 0.5)
