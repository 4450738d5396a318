"""Rewards and labels: worked by hand, and as laws. Numbers in names: tests/papers/test_lada_catalogue.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.distill.reward import (
    Outcome,
    Reward,
    batch_reward,
    label,
    labels,
    last_standardised,
    log_metric,
    margin_reward,
    no_history,
    standardised,
    unit_range,
)

logs = st.floats(-300, 300)
rewards = st.floats(-20, 20)


def outcome(losses, teacher=None):
    losses = torch.tensor(losses)
    return Outcome(losses, -losses, -losses, torch.zeros(len(losses)) if teacher is None else torch.tensor(teacher))


def test_the_metric_is_the_mean_of_exponentials():
    assert log_metric(torch.tensor([math.log(2.0), math.log(4.0)])) == pytest.approx(math.log(3.0))
    assert log_metric(torch.tensor([5000.0, 5000.0])) == pytest.approx(5000)  # exp of it is no float


def test_lada_4_the_batch_reward_by_hand():
    assert batch_reward(math.log(4.0), math.log(3.0)) == pytest.approx(0.25)  # (4 - 3) / 4
    assert batch_reward(math.log(3.0), math.log(4.0)) == pytest.approx(-0.25)
    assert batch_reward(math.log(4.0), math.log(1.0)) == pytest.approx(0.75)


@given(logs, logs)
def test_lada_4_the_batch_reward_is_antisymmetric_and_bounded(previous, current):
    found = batch_reward(previous, current)
    assert found == -batch_reward(current, previous)
    assert abs(found) <= 1
    assert abs(found) < 1 or abs(previous - current) > 30
    assert (found == 0) == (previous == current)
    assert found * (previous - current) >= 0


@given(st.floats(0, 1), rewards)
def test_lada_4_the_label_of_the_average_is_one_half(weight, other):
    assert label(torch.zeros(1), 0.0, weight).item() == pytest.approx(0.5)
    found = label(torch.tensor([other]), 0.0, weight).item()
    assert 0 < found < 1
    assert (found - 0.5) * other >= 0


@given(st.floats(0.01, 0.99), rewards, rewards, rewards, st.floats(0.5, 5))
def test_lada_4_the_label_grows_with_both_rewards(weight, sample, batch, other, more):
    def of(sample, batch):
        return label(torch.tensor([sample]), batch, weight).item()

    assert of(sample + more, batch) >= of(sample, batch)
    assert of(sample, batch + more) >= of(sample, batch)
    if abs(sample) < 8:
        assert of(sample + more, batch) > of(sample, batch)


def test_the_label_by_hand():
    sigma = 1 / (1 + math.exp(-1))
    found = label(torch.tensor([1.0, 0.0]), 1.0, 0.8)
    torch.testing.assert_close(found, torch.tensor([sigma, 0.8 * 0.5 + 0.2 * sigma]))


def test_the_papers_sample_reward_by_hand():
    found = margin_reward(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([-3.0, -1.0, -2.0]))
    torch.testing.assert_close(found, torch.tensor([0.0 + 1 - 0.0, 0.5 + 1 - 1.0, 1.0 + 1 - 0.5]).double())
    assert margin_reward(torch.ones(3), torch.ones(3)).tolist() == [1.0] * 3


def test_scales_of_equal_values_are_neutral():
    assert unit_range(torch.full((3,), 7.0)).tolist() == [0.5] * 3
    assert standardised(torch.full((3,), 0.1).double()).tolist() == [0.0] * 3
    assert last_standardised([0.3]) == 0
    assert last_standardised([0.0, 2.0]) == pytest.approx(1)


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=12), st.floats(0.1, 10), st.floats(-5, 5))
def test_standardised_values_do_not_depend_on_scale_and_origin(values, factor, shift):
    values = torch.tensor(values).double()
    found = standardised(values)
    if values.std() > 1e-3:
        torch.testing.assert_close(found, standardised(values * factor + shift), atol=1e-6, rtol=1e-6)
        assert found.mean().abs() < 1e-6


def test_the_history_over_three_batches():
    """Metrics 4, 2 and 3: rewards 0, 1/2 and -1/3, each standardised over what there was until then."""
    settings, history, found = Reward(sample_weight=0.0), no_history(), []
    for metric in (4.0, 2.0, 3.0):
        own, history = labels(outcome([math.log(metric)] * 2), history, settings)
        found.append(own)
    rewards = torch.tensor([0, 0.5, -1 / 3], dtype=torch.float64)
    z = [0.0, 1.0, float((rewards[2] - rewards.mean()) / rewards.std(unbiased=False))]
    for own, standard in zip(found, z, strict=True):
        torch.testing.assert_close(own, torch.full((2,), 1 / (1 + math.exp(-standard))))
    assert history["rewards"] == pytest.approx(rewards.tolist())
    assert history["previous"] == pytest.approx(math.log(3.0))


def test_the_window_forgets_and_an_empty_batch_says_nothing():
    settings, history = Reward(window=2), no_history()
    for metric in (1.0, 2.0, 3.0):
        _, history = labels(outcome([metric]), history, settings)
    assert len(history["rewards"]) == 2
    empty, same = labels(outcome([]), history, settings)
    assert len(empty) == 0
    assert same is history


def test_reliable_labels_follow_the_teacher_and_the_papers_the_margin():
    found = outcome([3.0, 2.0, 1.0], teacher=[-1.0, -2.0, -3.0])
    reliable, _ = labels(found, no_history(), Reward(sample="reliable"))
    paper, _ = labels(found._replace(student=torch.zeros(3)), no_history(), Reward(sample="paper"))
    assert reliable[0] > reliable[1] > reliable[2]
    assert paper[0] < paper[1] < paper[2]
    assert min(reliable.min(), paper.min()) > 0
    assert max(reliable.max(), paper.max()) < 1
