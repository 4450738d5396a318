"""Conditional transport: by hand, as laws, and against the plans of POT."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.rng import Rng
from fedquilt.vertical.prior import learned
from fedquilt.vertical.prototypes import cosines, unit
from fedquilt.vertical.transport import likelihood, transport, transport_loss

seeds = st.integers(0, 10_000)


def drawn(seed, rows=7, classes=4, width=3):
    generator = Rng(seed).torch()
    embeddings = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    prototypes = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    prior = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.01
    weights = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.01
    return cosines(embeddings, prototypes), prior / prior.sum(), weights / weights.sum()


def test_both_plans_by_hand():
    scores = torch.tensor([[math.log(2.0), 0.0], [0.0, 0.0]], dtype=torch.float64)
    prior, weights = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.5, 0.5]).double()
    found = transport(scores, prior, weights, 1.0)
    # row 0: 0.25 * 2 against 0.75 * 1; row 1: the prior itself
    assert torch.allclose(found.forward, torch.tensor([[0.4, 0.6], [0.25, 0.75]]).double())
    # class 0: 2 against 1; class 1: equal
    assert torch.allclose(found.backward, torch.tensor([[2 / 3, 0.5], [1 / 3, 0.5]]).double())
    low = 1 - math.log(2.0)
    assert torch.allclose(found.row_costs, torch.tensor([0.4 * low + 0.6, 1.0]).double())
    assert torch.allclose(found.class_costs, torch.tensor([2 / 3 * low + 1 / 3, 1.0]).double())
    expected = 0.5 * (0.5 * found.row_costs.sum()) + 0.5 * (prior @ found.class_costs)
    assert torch.allclose(transport_loss(found, prior, weights), expected)


@given(seeds, st.floats(0.05, 5))
def test_proto_1_plans_are_distributions_and_costs_are_bounded(seed, temperature):
    scores, prior, weights = drawn(seed)
    found = transport(scores, prior, weights, temperature)
    assert torch.allclose(found.forward.sum(1), torch.ones(7).double())
    assert torch.allclose(found.backward.sum(0), torch.ones(4).double())
    for costs in (found.row_costs, found.class_costs, transport_loss(found, prior, weights)):
        assert costs.min() >= 0
        assert costs.max() <= 2


def test_proto_1_rows_at_the_prototype_of_the_only_class_cost_nothing():
    prototypes = torch.eye(3, dtype=torch.float64)
    prior = torch.tensor([0.0, 1.0, 0.0]).double()
    weights = torch.full((5,), 0.2).double()
    found = transport(cosines(prototypes[1].repeat(5, 1), prototypes), prior, weights, 0.1)
    assert transport_loss(found, prior, weights) == pytest.approx(0, abs=1e-7)  # the safe norm is that far from 1


@given(seeds)
def test_proto_2_with_a_uniform_prior_the_forward_plan_is_the_cosine_classifier(seed):
    scores, _, weights = drawn(seed)
    found = transport(scores, torch.full((4,), 0.25).double(), weights, 0.1)
    assert torch.allclose(found.forward, (scores / 0.1).softmax(1))


@given(seeds, st.integers(0, 3), st.floats(0.1, 100))
def test_proto_2_the_scale_of_the_prior_says_nothing_and_a_class_follows_its_own(seed, which, factor):
    scores, prior, weights = drawn(seed)
    found = transport(scores, prior, weights, 0.5)
    assert torch.allclose(transport(scores, prior * factor, weights, 0.5).forward, found.forward)
    more = prior.clone()
    more[which] *= 1.5
    assert (transport(scores, more, weights, 0.5).forward[:, which] > found.forward[:, which]).all()
    without = prior.clone()
    without[which] = 0
    gone = transport(scores, without, weights, 0.5)
    assert (gone.forward[:, which] == 0).all()
    assert torch.isfinite(gone.row_costs).all()
    assert torch.isfinite(gone.class_costs).all()


@given(seeds, st.floats(0.1, 2))
def test_the_plans_are_those_of_pot_with_one_marginal_held(seed, temperature):
    scores, prior, weights = drawn(seed)
    found = transport(scores, prior, weights, temperature)
    costs, reference = (1 - scores).numpy(), (weights.unsqueeze(1) * prior).numpy()

    def plan(rows, columns):
        # Kullback-Leibler towards the product of both marginals; one of them must be met, the other is free
        return ot.unbalanced.sinkhorn_unbalanced(
            weights.numpy(), prior.numpy(), costs, temperature, (rows, columns), c=reference, numItermax=1
        )

    held = np.inf
    assert np.allclose(found.forward.numpy() * weights.numpy()[:, None], plan(held, 0.0), atol=1e-6)
    assert np.allclose(found.backward.numpy() * prior.numpy()[None], plan(0.0, held), atol=1e-6)


@given(seeds, st.integers(1, 5))
def test_proto_3_learning_the_prior_never_lowers_the_likelihood(seed, steps):
    scores, prior, weights = drawn(seed)
    for _ in range(steps):
        after = learned(prior, transport(scores, prior, weights, 0.5).forward, 1.0)
        assert after.sum() == pytest.approx(1)
        assert after.min() >= 0
        assert likelihood(scores, after, 0.5) >= likelihood(scores, prior, 0.5) - 1e-9
        prior = after


def test_proto_8_a_row_without_features_has_finite_costs_and_gradients():
    embeddings = torch.zeros(3, 4, requires_grad=True)
    prototypes = torch.zeros(2, 4, requires_grad=True)
    prior, weights = torch.tensor([0.5, 0.5]), torch.full((3,), 1 / 3)
    loss = transport_loss(transport(cosines(embeddings, prototypes), prior, weights, 0.1), prior, weights)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(prototypes.grad).all()


def test_unit_vectors_by_hand():
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    assert torch.allclose(unit(rows), torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]]))
