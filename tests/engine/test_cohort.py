"""Cohorts: who takes part in a round."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, Profile
from fedquilt.engine.cohort import uniform_cohorts


def profiles(number: int) -> tuple[Profile, ...]:
    return tuple(Profile(10 * k, 5, "toy", Budget(1), "toy") for k in range(number))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.data(), st.integers(), st.integers(0, 1000))
def test_a_cohort_holds_so_many_distinct_clients_in_order_and_is_the_same_whenever_asked(number, data, seed, t):
    size = data.draw(st.integers(1, number))
    everyone = profiles(number)
    cohort = uniform_cohorts(everyone, size, Rng(seed))
    cohort(t + 1)  # asked out of turn
    ids = [profile.id for profile in cohort(t)]
    assert len(set(ids)) == size
    assert ids == sorted(ids)
    assert set(cohort(t)) <= set(everyone)
    assert cohort(t) == uniform_cohorts(everyone, size, Rng(seed))(t)


def test_every_client_and_every_pair_is_equally_likely():
    cohort = uniform_cohorts(profiles(5), 2, Rng(1))
    pairs = np.zeros((5, 5))
    for t in range(4000):
        first, second = (profile.id // 10 for profile in cohort(t))
        pairs[first, second] += 1
    upper = pairs[np.triu_indices(5, 1)]
    assert upper.sum() == 4000
    assert np.abs(upper / 4000 - 0.1).max() < 0.02  # more than four standard deviations


def test_rounds_and_seeds_differ():
    cohort, other = (uniform_cohorts(profiles(30), 5, Rng(seed)) for seed in (1, 2))
    assert len({cohort(t) for t in range(50)}) > 45
    assert cohort(0) != other(0)


def test_all_clients_every_round():
    assert uniform_cohorts(profiles(4), 4, Rng(0))(7) == profiles(4)


@pytest.mark.parametrize("size", [0, -1, 4])
def test_a_size_that_cannot_be_drawn_is_refused(size):
    with pytest.raises(ValueError, match=f"a cohort of {size} cannot be drawn from 3 clients"):
        uniform_cohorts(profiles(3), size, Rng(0))


def test_the_draw_is_apart_from_those_of_rounds_and_methods():
    """What a method draws from its own streams moves no cohort, so all methods of a comparison meet the same ones."""
    rng = Rng(3)
    before = [uniform_cohorts(profiles(9), 3, rng)(t) for t in range(5)]
    for t in range(5):
        rng.child("round", t).numpy().normal(size=100)
        rng.child("init").torch()
    assert [uniform_cohorts(profiles(9), 3, rng)(t) for t in range(5)] == before
