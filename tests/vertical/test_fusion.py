"""The gate and the fused score: by hand, and as laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.rng import Rng
from fedquilt.vertical.fusion import fused, gates

seeds = st.integers(0, 10_000)


def drawn(seed, parties=3, rows=4, classes=5):
    generator = Rng(seed).torch()
    scores = torch.rand(parties, rows, classes, generator=generator, dtype=torch.float64) * 2 - 1
    logits = torch.randn(rows, parties, generator=generator, dtype=torch.float64)
    return scores, logits, torch.rand(parties, classes, generator=generator) < 0.6


def test_the_fused_score_by_hand():
    scores = torch.tensor([[[1.0, 0.5]], [[-1.0, 0.1]]]).double()
    gate = torch.tensor([[0.25, 0.75]]).double()
    both = torch.ones(2, 2, dtype=torch.bool)
    assert fused(scores, gate, both).tolist() == [pytest.approx([-0.5, 0.2])]
    first_alone = torch.tensor([[True, False], [False, False]])
    assert fused(scores, gate, first_alone).tolist() == [pytest.approx([1.0, 0.0])]  # nobody knows the second class


@given(seeds)
def test_proto_7_gates_are_distributions_and_leave_out_who_is_not_there(seed):
    _, logits, _ = drawn(seed)
    assert torch.allclose(gates(logits, torch.ones(3, dtype=torch.bool)).sum(1), torch.ones(4).double())
    without = gates(logits, torch.tensor([True, False, True]))
    assert (without[:, 1] == 0).all()
    assert torch.allclose(without.sum(1), torch.ones(4).double())


@given(seeds, st.floats(0.01, 100))
def test_proto_7_the_scale_of_the_gate_says_nothing(seed, factor):
    scores, logits, knows = drawn(seed)
    weights = gates(logits, torch.ones(3, dtype=torch.bool))
    assert torch.allclose(fused(scores, weights * factor, knows), fused(scores, weights, knows))


@given(seeds)
def test_proto_7_what_a_party_does_not_know_never_counts(seed):
    scores, logits, knows = drawn(seed)
    weights = gates(logits, torch.ones(3, dtype=torch.bool))
    other = torch.where(knows.unsqueeze(1), scores, scores.flip(1) * 7)
    assert torch.equal(fused(other, weights, knows), fused(scores, weights, knows))


@given(seeds, st.permutations(range(3)))
def test_proto_7_the_order_of_parties_says_nothing(seed, order):
    scores, logits, knows = drawn(seed)
    order = list(order)
    everyone = torch.ones(3, dtype=torch.bool)
    weights = gates(logits, everyone)
    assert torch.allclose(gates(logits[:, order], everyone), weights[:, order])
    assert torch.allclose(fused(scores[order], weights[:, order], knows[order]), fused(scores, weights, knows))
