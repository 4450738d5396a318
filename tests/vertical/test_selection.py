"""Selected rows and their weights: by hand, and as laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.rng import Rng
from fedquilt.vertical.selection import Selection, row_weights, tag_costs, tags
from fedquilt.vertical.transport import transport


def test_weights_by_hand():
    costs, classes = torch.tensor([0.1, 0.4, 0.2, 0.9]).double(), torch.tensor([0, 0, 0, 1])
    half = row_weights(costs, classes, Selection(keep=0.5, softness=1e9, balanced=False))
    # ranks within class 0 are 0, 2/3, 1/3: the second row is dropped; class 1 keeps its only row
    assert half.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    soft = row_weights(costs, classes, Selection(softness=0.1, balanced=False))
    expected = torch.exp(-(costs - 0.1) / 0.1)
    assert soft.tolist() == pytest.approx((expected / expected.sum()).tolist())


@given(st.integers(0, 10_000), st.floats(0.01, 1), st.floats(0.05, 100), st.booleans())
def test_proto_5_weights_are_a_distribution_and_no_class_is_lost(seed, keep, softness, balanced):
    generator = Rng(seed).torch()
    costs = torch.randint(0, 5, (12,), generator=generator).double() / 4  # with ties
    classes = torch.randint(0, 4, (12,), generator=generator)
    found = row_weights(costs, classes, Selection(keep, softness, balanced))
    assert found.min() >= 0
    assert found.sum().item() == pytest.approx(1)
    for own in classes.unique():
        kept = (found[classes == own] > 0).sum().item()
        assert 1 <= kept <= max(1, -(-keep * (classes == own).sum().item() // 1) + 1)


@given(st.integers(0, 10_000))
def test_proto_5_balanced_classes_carry_equal_mass_where_cost_does_not_count(seed):
    classes = torch.randint(0, 4, (15,), generator=Rng(seed).torch())
    found = row_weights(torch.rand(15, generator=Rng(seed + 1).torch()).double(), classes, Selection(softness=1e9))
    masses = [found[classes == own].sum().item() for own in classes.unique()]
    assert masses == pytest.approx([1 / len(masses)] * len(masses))


def test_proto_5_no_gradient_goes_through_the_weights():
    scores = torch.rand(4, 3, requires_grad=True)
    found = transport(scores, torch.ones(3) / 3, torch.ones(4) / 4, 0.1)
    labels = torch.tensor([0, 1, 2, 0])
    for given_labels in (None, labels):
        costs = tag_costs(found, scores, given_labels)
        assert not row_weights(costs, tags(found, given_labels), Selection()).requires_grad
    assert torch.equal(tags(found, labels), labels)
    assert torch.equal(tags(found, None), found.forward.argmax(1))
    assert torch.allclose(tag_costs(found, scores, labels), 1 - scores.detach()[range(4), labels])
