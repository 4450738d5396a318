"""The relation between layers and slots: shares that sum to 1, means both ways, gradients to the relation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.bank.relation import (
    depth_logits,
    depth_slots,
    lifted,
    lowered,
    relation,
    smoothing,
    top_aligned,
)
from fedquilt.core.rng import Rng

laws = settings(max_examples=150, deadline=None)


@st.composite
def relations(draw):
    """A relation as it is at first, as it may have become, or one of the fixed ones."""
    slots, layers = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(["depth", "learned", "slots", "top"]))
    if kind == "top":
        return top_aligned(min(slots, layers), slots)
    if kind == "slots":
        return depth_slots(layers, slots)
    logits = depth_logits(layers, slots, draw(st.floats(0.1, 2)))
    if kind == "learned":
        logits = logits + 2 * torch.randn(logits.shape, generator=Rng(draw(st.integers(0, 2**32))).torch())
    return relation(logits)


def test_the_relation_by_relative_depth_is_the_worked_one():
    # slots lie at 1/8, 3/8, 5/8, 7/8 and layers at 1/4, 3/4: half a slot, or one and a half, away
    near, far = np.exp(-0.5), np.exp(-4.5)
    expected = np.array([[near, far], [near, far], [far, near], [far, near]])
    expected[1, 1] = expected[2, 0] = np.exp(-4.5)
    expected[0, 1] = expected[3, 0] = np.exp(-12.5)
    expected /= expected.sum(0)
    np.testing.assert_allclose(relation(depth_logits(2, 4)).numpy(), expected, rtol=1e-5)


@laws
@given(relations())
def test_h2_10_columns_are_shares(shares):
    """H2-10. The released relation is unbounded noise of either sign (B4)."""
    torch.testing.assert_close(shares.sum(0), torch.ones(shares.shape[1]))
    assert float(shares.min()) >= 0


@laws
@given(relations(), st.floats(-100, 100), st.integers(0, 2**32))
def test_h2_10_nothing_lifts_to_nothing_and_constants_survive_both_ways(shares, constant, seed):
    """H2-10, H2-21. The released code lifts by the transpose: a constant comes out scaled by the row sums (B4)."""
    slots, layers = shares.shape
    covered = torch.rand(layers, 3, generator=Rng(seed).torch()) < 0.6
    some = torch.tensordot(shares, covered.float(), dims=1) > 0
    assert not lifted(torch.zeros(layers, 3), shares, covered).any()
    same = torch.full((layers, 3), constant)
    expected = torch.where(some, torch.tensor(constant), torch.tensor(0.0))
    torch.testing.assert_close(lifted(same, shares, covered), expected)
    torch.testing.assert_close(lowered(torch.full((slots, 3), constant), shares), same)


@laws
@given(relations(), st.integers(0, 2**32))
def test_what_is_not_covered_has_no_say(shares, seed):
    generator = Rng(seed).torch()
    layers = torch.randn(shares.shape[1], 4, generator=generator)
    covered = torch.rand(layers.shape, generator=generator) < 0.5
    spoiled = torch.where(covered, layers, torch.tensor(torch.nan))
    assert torch.equal(lifted(spoiled, shares, covered), lifted(layers, shares, covered))


@laws
@given(relations(), st.integers(0, 2**32))
def test_lift_and_lower_are_numpys_sums(shares, seed):
    layers = torch.randn(shares.shape[1], 2, 3, generator=Rng(seed).torch(), dtype=torch.float64)
    p = shares.double().numpy()
    sums = p.sum(1)
    expected = np.einsum("jl,lab->jab", p, layers.numpy())
    expected = np.divide(expected, sums[:, None, None], out=np.zeros_like(expected), where=sums[:, None, None] > 0)
    up = lifted(layers, shares.double())
    np.testing.assert_allclose(up.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(lowered(up, shares.double()).numpy(), np.einsum("jl,jab->lab", p, expected), atol=1e-12)


@laws
@given(relations())
def test_h2_21_a_round_trip_is_symmetric_and_doubly_stochastic_with_a_spectrum_in_the_unit_interval(shares):
    """H2-21. A round trip of the released code keeps a third of the bank, five rounds a hundredth (B4)."""
    shares = shares.double() / shares.double().sum(0)  # float32's own columns sum to 1 within 1e-7 only
    trip = smoothing(shares)
    torch.testing.assert_close(trip, trip.T)
    torch.testing.assert_close(trip.sum(0), torch.ones(len(trip), dtype=torch.float64))
    spectrum = torch.linalg.eigvalsh(trip)
    assert float(spectrum.min()) > -1e-9
    assert float(spectrum.max()) < 1 + 1e-9


def test_h2_21_the_reports_spectra():
    """H2-21, as measured before: 28 slots and 18 layers leave 0.65 at least, 28 and 24 leave 0.27."""
    for layers, least in ((18, 0.65), (24, 0.27)):
        spectrum = torch.linalg.eigvalsh(smoothing(relation(depth_logits(layers, 28)).double()))
        assert float(spectrum[0]) == pytest.approx(least, abs=0.01)
        assert float(spectrum[-1]) == pytest.approx(1, abs=1e-6)


def test_b4_the_transpose_alone_would_wear_the_bank_away():
    """B4, shown: with random relations P P^T G five rounds leave next to nothing; ours leaves a constant bank whole."""
    generator = Rng(0).torch()
    bank = torch.randn(28, 64, generator=generator)
    released = bank
    for _ in range(5):
        noise = (2 * torch.rand(28, 24, generator=generator) - 1) / 24**0.5
        released = noise @ noise.T @ released
    assert float(released.norm() / bank.norm()) < 0.05
    shares = relation(depth_logits(24, 28))
    flat = torch.full((28, 64), 0.3)
    for _ in range(5):
        flat = lifted(lowered(flat, shares), shares)
    torch.testing.assert_close(flat, torch.full((28, 64), 0.3))


@pytest.mark.parametrize("layers", [1, 4, 18, 28])
def test_h2_17_as_many_slots_as_layers_and_a_small_width_are_the_identity(layers):
    """H2-17. The released relation is drawn at random and says nothing of depth (B4)."""
    shares = relation(depth_logits(layers, layers, 0.05))
    torch.testing.assert_close(shares, torch.eye(layers), rtol=0, atol=1e-20)
    assert torch.equal(depth_slots(layers, layers), torch.eye(layers))
    assert torch.equal(top_aligned(layers, layers), torch.eye(layers))


@laws
@given(st.integers(1, 30), st.integers(1, 30))
def test_h2_17_layers_keep_their_order(layers, slots):
    """H2-17. Fails for a random relation, which is what the released code uses (B1, B4)."""
    for shares in (relation(depth_logits(layers, slots)), depth_slots(layers, slots)):
        nearest = shares.argmax(0)
        assert bool((nearest.diff() >= 0).all())


def test_fixed_alignments_are_the_worked_ones():
    assert top_aligned(2, 3).argmax(0).tolist() == [1, 2]
    assert depth_slots(4, 2).argmax(0).tolist() == [0, 0, 1, 1]
    assert depth_slots(2, 4).argmax(0).tolist() == [1, 3]
    assert depth_slots(3, 2).argmax(0).tolist() == [0, 1, 1]
    assert depth_slots(1, 1).tolist() == [[1.0]]


def test_layers_of_one_slot_share_it_and_the_slot_gets_their_mean():
    shares = depth_slots(4, 2)
    up = lifted(torch.tensor([[1.0], [3.0], [10.0], [20.0]]), shares)
    assert up.tolist() == [[2.0], [15.0]]
    assert lowered(up, shares).tolist() == [[2.0], [2.0], [15.0], [15.0]]


def test_a_slot_that_no_layer_belongs_to_gets_nothing():
    assert lifted(torch.tensor([[5.0], [6.0]]), top_aligned(2, 3)).tolist() == [[0.0], [5.0], [6.0]]


def test_h2_10_gradients_reach_the_relation_and_are_autograds():
    """H2-10. In the released code the relation is outside the graph: only a norm pulls at it (B6)."""
    logits = depth_logits(3, 4).double().requires_grad_(True)
    slots = torch.randn(4, 2, 2, dtype=torch.float64, generator=Rng(1).torch()).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda g, p: lowered(g, relation(p)), (slots, logits))
    layers = torch.randn(3, 2, dtype=torch.float64, generator=Rng(2).torch()).requires_grad_(True)
    covered = torch.tensor([[True, True], [True, False], [False, True]])
    assert torch.autograd.gradcheck(lambda c, p: lifted(c, relation(p), covered), (layers, logits))
    lowered(slots, relation(logits)).square().sum().backward()
    assert float(logits.grad.abs().max()) > 0.01
    # shares sum to 1, so pushing all logits of a layer up does nothing
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(3, dtype=torch.float64))


def test_arguments_stay_as_they_were_and_dtypes_come_back():
    layers, shares = torch.randn(3, 2, generator=Rng(0).torch()).bfloat16(), relation(depth_logits(3, 4))
    before = layers.clone(), shares.clone()
    assert lifted(layers, shares).dtype == torch.bfloat16
    assert torch.equal(layers, before[0])
    assert torch.equal(shares, before[1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: depth_logits(0, 3), "0 layers and 3 slots; there must be at least one of each"),
        (lambda: depth_logits(2, 3, 0.0), "width is 0.0; it must be above 0 slots"),
        (lambda: depth_slots(2, 0), "2 layers and 0 slots"),
        (lambda: top_aligned(4, 3), "4 layers cannot be aligned with 3 slots; give at least 4"),
    ],
)
def test_impossible_numbers_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
