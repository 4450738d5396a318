"""Next-token distillation: torch's own divergence, laws, and tokenizers that differ."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from fedquilt.core.rng import Rng
from fedquilt.distill.logits import (
    UNKNOWN,
    TopK,
    common_positions,
    cuts,
    distillation_loss,
    top_k,
    top_k_divergence,
    translated,
    vocabulary_map,
)

seeds = st.integers(0, 10**6)


def drawn(seed, *shape, scale=2.0):
    return scale * torch.randn(*shape, generator=Rng(seed).torch())


@given(seeds)
def test_over_the_whole_vocabulary_it_is_torchs_divergence(seed):
    teacher, student = drawn(seed, 4, 9), drawn(seed + 1, 4, 9).requires_grad_(True)
    found = top_k_divergence(student, top_k(teacher, 9))
    expected = functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    torch.testing.assert_close(found, expected.sum(-1), atol=1e-5, rtol=1e-4)
    mine, theirs = (torch.autograd.grad(each.sum(), student, retain_graph=True)[0] for each in (found, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


@given(seeds, st.integers(1, 9))
def test_mass_is_at_most_one_and_equal_models_do_not_differ(seed, k):
    logits = drawn(seed, 5, 9)
    top = top_k(logits, k)
    assert top.tokens.shape == (5, k)
    assert top.log_probs.exp().sum(-1).max() <= 1 + 1e-6
    assert top_k_divergence(logits, top).abs().max() < 1e-5
    vocabulary = torch.randint(-1, 9, (9,), generator=Rng(seed).torch())
    assert translated(top, vocabulary).log_probs.exp().sum(-1).max() <= 1 + 1e-6
    identity = translated(top, torch.arange(9))
    assert torch.equal(identity.tokens, top.tokens)
    assert torch.equal(identity.log_probs, top.log_probs)


@given(seeds, st.integers(1, 9))
def test_a_divergence_is_not_negative_and_lumps_what_is_not_common(seed, k):
    """Divergence of the distributions after a map of tokens, with all others as one, worked with dense numbers."""
    teacher, student = drawn(seed, 3, 9), drawn(seed + 1, 3, 7)
    vocabulary = torch.randint(-1, 7, (9,), generator=Rng(seed).torch())
    found = top_k_divergence(student, translated(top_k(teacher, k), vocabulary))
    q, p = teacher.double().softmax(-1), student.double().softmax(-1)
    for row in range(3):
        dense, seen = torch.zeros(8).double(), set()
        for token in q[row].topk(k).indices.tolist():
            own = int(vocabulary[token])
            if own != UNKNOWN:
                dense[own] += q[row, token]
                seen.add(own)
        dense[7] = 1 - dense.sum()
        mine = torch.zeros(8).double()
        for own in seen:
            mine[own] = p[row, own]
        mine[7] = max(1 - mine.sum(), torch.finfo(torch.float32).eps)  # the student may know every token
        expected = sum(float(a * (a / b).log()) for a, b in zip(dense, mine, strict=True) if a > 1e-12)
        assert found[row].item() == pytest.approx(expected, abs=1e-4)
        assert found[row] > -1e-5


def test_nothing_in_common_is_zero_with_a_zero_gradient():
    student = drawn(0, 2, 5).requires_grad_(True)
    found = top_k_divergence(student, translated(top_k(drawn(1, 2, 5), 3), torch.full((5,), UNKNOWN)))
    assert found.tolist() == [0.0, 0.0]
    (slope,) = torch.autograd.grad(found.sum(), student)
    assert slope.abs().sum() == 0
    none = distillation_loss(student, top_k(drawn(1, 2, 5), 3), torch.zeros(0, 2, dtype=torch.long))
    assert none.item() == 0
    assert none.requires_grad


def test_sure_models_give_finite_numbers():
    teacher, student = torch.tensor([[500.0, 0, 0]]), torch.tensor([[0.0, 500.0, 0]]).requires_grad_(True)
    found = top_k_divergence(student, top_k(teacher, 1))
    assert found.item() == pytest.approx(500, rel=1e-3)
    assert torch.autograd.grad(found.sum(), student)[0].isfinite().all()
    full = torch.tensor([[500.0, 0, 0]]).requires_grad_(True)
    same = top_k_divergence(full, top_k(teacher, 3))
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(same.sum(), full)[0].isfinite().all()


def test_words_of_two_tokenizers():
    teacher, student = ["Ġa", "b", "Ċ", "only"], ["b", "▁a", "<0x0A>", "b"]
    assert vocabulary_map(teacher, student).tolist() == [1, 0, 2, UNKNOWN]
    assert vocabulary_map(["Ċ", "<0x0A>", "b"], ["<0x0A>", "Ċ"]).tolist() == [1, 0, UNKNOWN]
    assert vocabulary_map(student, student).tolist() == [0, 1, 2, 0]


def test_positions_at_which_both_cut_the_text():
    first, second = ["12", "Ġ+", "Ġ3", "4"], ["1", "2", "▁+", "▁34"]
    assert cuts(first) == [0, 2, 4, 6]
    assert cuts(second) == [0, 1, 2, 4]
    assert common_positions(cuts(first), cuts(second)).tolist() == [[0, 0], [1, 2], [2, 3]]
    assert common_positions(cuts(first), cuts(first)).tolist() == [[row, row] for row in range(4)]
    assert common_positions([0, 1, 1], [1, 1, 2]).tolist() == [[2, 1]]
    assert common_positions([], [0]).shape == (0, 2)


def test_the_loss_is_the_mean_over_common_positions():
    teacher, student = top_k(drawn(0, 4, 6), 3), drawn(1, 5, 6)
    pairs = torch.tensor([[0, 1], [3, 4]])
    by_hand = top_k_divergence(student[[1, 4]], TopK(teacher.tokens[[0, 3]], teacher.log_probs[[0, 3]]))
    torch.testing.assert_close(distillation_loss(student, teacher, pairs), by_hand.mean())
    torch.testing.assert_close(distillation_loss(student[:4], teacher), top_k_divergence(student[:4], teacher).mean())
