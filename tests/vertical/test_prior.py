"""Priors: counted by hand, and mixed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.vertical.prior import global_prior, histogram, learned, mixed


def test_proto_3_a_histogram_is_the_counts():
    labels = torch.tensor([0, 0, 2])
    assert histogram(labels, 3, smoothing=0).tolist() == [2 / 3, 0, 1 / 3]
    assert histogram(labels, 3).tolist() == [3 / 6, 1 / 6, 2 / 6]
    assert histogram(labels[:0], 4, smoothing=0).tolist() == [0.25] * 4


def test_one_damped_step_by_hand():
    forward = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    found = learned(torch.tensor([0.5, 0.5]).double(), forward, 0.1)
    assert found.tolist() == pytest.approx([0.525, 0.475])


def test_the_global_prior_by_hand():
    aligned = torch.tensor([1.0, 0.0]).double()
    parties = [torch.tensor([0.5, 0.5]).double(), torch.tensor([0.0, 1.0]).double()]
    # (300 * 0.5 + 100 * 0) / 400 = 0.375
    assert global_prior(aligned, parties, [300, 100]).tolist() == [0.5 + 0.5 * 0.375, 0.5 * 0.625]
    assert global_prior(aligned, parties, [0, 0]).tolist() == [1.0, 0.0]


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20), st.floats(0, 1))
def test_proto_4_a_mixed_prior_is_above_zero_and_ends_at_either_part(left, right, share):
    local, common = (histogram(torch.tensor(labels, dtype=torch.long), 4) for labels in (left, right))
    found = mixed(local, common, share)
    assert found.min() > 0
    assert found.sum().item() == pytest.approx(1)
    assert torch.equal(mixed(local, common, 1.0), local)
    assert torch.equal(mixed(local, common, 0.0), common)
