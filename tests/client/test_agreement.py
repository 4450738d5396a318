"""H2-12: disagreement is 0 where teacher and student agree, and minds neither padding nor prompts."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.client.agreement import disagreement
from fedquilt.core.rng import Rng

laws = settings(max_examples=100, deadline=None)


@st.composite
def predictions(draw):
    """Student, teacher (rows, tokens, classes), and which tokens count: some prompt, some labels."""
    generator = Rng(draw(st.integers(0, 2**32))).torch()
    rows, tokens, classes = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(2, 6))
    student, teacher = (3 * torch.randn(rows, tokens, classes, generator=generator) for _ in range(2))
    counted = torch.rand(rows, tokens, generator=generator) < 0.6
    counted[0, 0] = True
    return student, teacher, counted


def test_the_worked_number():
    student, teacher = torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.tensor([[math.log(3), 0.0], [5.0, -5.0]])
    # (3/4, 1/4) against (1/2, 1/2); the second row does not count
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(disagreement(student, teacher, torch.tensor([True, False]))) == pytest.approx(expected, rel=1e-5)
    # at temperature 1/2 the teacher is (9/10, 1/10), and the factor 1/4
    cold = (0.9 * math.log(1.8) + 0.1 * math.log(0.2)) / 4
    assert float(disagreement(student, teacher, torch.tensor([True, False]), 0.5)) == pytest.approx(cold, rel=1e-5)


@laws
@given(predictions(), st.floats(0.5, 4))
def test_it_is_torchs_divergence_over_what_counts(case, temperature):
    student, teacher, counted = case
    flat = [F.log_softmax(logits[counted] / temperature, -1) for logits in (student, teacher)]
    expected = temperature**2 * F.kl_div(*flat, log_target=True, reduction="batchmean")
    torch.testing.assert_close(disagreement(student, teacher, counted, temperature), expected, rtol=1e-4, atol=1e-5)


@laws
@given(predictions(), st.integers(0, 100), st.integers(0, 2**32))
def test_h2_12_padding_and_prompts_change_nothing(case, pads, seed):
    """H2-12. The released code sums over every token, prompt and padding too, and divides by rows only (B13)."""
    student, teacher, counted = case
    generator = Rng(seed).torch()
    shape = (len(counted), pads, student.shape[-1])
    more = [torch.cat([logits, torch.randn(shape, generator=generator)], 1) for logits in (student, teacher)]
    longer = torch.cat([counted, torch.zeros(shape[:2], dtype=torch.bool)], 1)
    assert torch.equal(disagreement(*more, longer), disagreement(student, teacher, counted))
    spoiled = torch.where(counted[..., None], teacher, torch.tensor(torch.inf))
    assert torch.equal(disagreement(student, spoiled, counted), disagreement(student, teacher, counted))


@laws
@given(predictions(), st.floats(-50, 50))
def test_h2_12_it_is_zero_if_and_only_if_they_agree(case, shift):
    """H2-12. In the released code teacher and student are the same weights, so the term does nothing (B11)."""
    student, teacher, counted = case
    agreed = disagreement(teacher + shift, teacher, counted)
    assert float(agreed) == pytest.approx(0, abs=1e-5)
    other = teacher.clone()
    other[0, 0, teacher[0, 0].argmin()] = teacher[0, 0].max() + 3  # of another mind, however sure the teacher is
    assert float(disagreement(other, teacher, counted)) > 1e-3
    assert float(disagreement(student, teacher, counted)) >= -1e-6


def test_only_the_student_learns_and_only_where_it_counts():
    generator = Rng(0).torch()
    student, teacher = (torch.randn(2, 3, 4, generator=generator).requires_grad_(True) for _ in range(2))
    counted = torch.tensor([[True, False, True], [False, False, True]])
    disagreement(student, teacher, counted, 2.0).backward()
    assert teacher.grad is None
    assert not student.grad[~counted].any()
    # of t^2 KL over n: t (p_student - p_teacher) / n
    soft = [F.softmax(logits.detach()[counted] / 2, -1) for logits in (student, teacher)]
    torch.testing.assert_close(student.grad[counted], 2 * (soft[0] - soft[1]) / 3)


def test_nothing_counted_is_no_disagreement_and_half_precision_is_widened():
    logits = torch.randn(2, 3, generator=Rng(0).torch(), requires_grad=True)
    nothing = disagreement(logits, -logits.detach(), torch.zeros(2, dtype=torch.bool))
    assert float(nothing.detach()) == 0
    nothing.backward()
    assert not logits.grad.any()
    half = logits.detach().bfloat16()
    assert disagreement(half, -half, torch.ones(2, dtype=torch.bool)).dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        disagreement(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"the mask is \(3,\)"):
        disagreement(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="temperature is 0; it must be above 0"):
        disagreement(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, dtype=torch.bool), 0)
