"""Losses on whole paths: by hand, as laws, and on a model. Numbers in names: tests/papers/test_lada_catalogue.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_federation import LLAMA, rows, start_of, workbench

from fedquilt.client.fit import fit
from fedquilt.core.rng import Rng
from fedquilt.core.settings import problems_of
from fedquilt.core.training import Training
from fedquilt.distill.contrast import (
    Contrast,
    Pair,
    Samples,
    contrastive_losses,
    margins,
    pair_loss,
    path_loss,
    rationale_and_label_loss,
    reference_of,
    sequence_loss,
    transfer,
)
from fedquilt.distill.paths import Likelihood, likelihood, likelihoods, path_columns

PROMPTS = [[5, 6, 7], [8], [9, 10, 11], [14, 15]]
TAUGHT = [[20, 21, 2], [22, 23, 24, 2], [25, 2], [27, 28, 29, 2]]
OWN = [[30, 2], [31, 32, 33, 2], [25, 2], [34, 2]]
ALL = torch.arange(4)

betas = st.floats(0.01, 10)
numbers = st.integers(1, 9)
totals = st.floats(-60, 0)


def of(total, tokens):
    return Likelihood(torch.tensor([total]), torch.tensor([tokens]))


def taught(bench, weights=None, peer=None):
    columns = [path_columns(PROMPTS, paths, pad=0) for paths in (TAUGHT, OWN)]
    reference = Pair(*(likelihoods(bench if peer is None else peer, each) for each in columns))
    return Samples(*columns, reference, torch.ones(4) if weights is None else weights)


@pytest.fixture
def bench():
    bench = workbench(LLAMA, "causal-lm")
    bench.load(start_of(bench))
    return bench


@pytest.fixture
def peer():
    """Another model: the same one with other adapters."""
    bench = workbench(LLAMA, "causal-lm")
    bench.load({name: tensor + 0.3 for name, tensor in start_of(bench).items()})
    return bench


def test_the_margin_by_hand():
    student = Pair(of(-4.0, 2), of(-9.0, 3))
    reference = Pair(of(-6.0, 7), of(-6.0, 7))  # in other tokens, whose number does not matter
    found = margins(student, reference, Contrast(beta=0.5))
    torch.testing.assert_close(found, torch.tensor([0.5 * (2 / 2 - -3 / 3)]))
    found = margins(student, reference, Contrast(beta=0.5, per_token=False))
    torch.testing.assert_close(found, torch.tensor([0.5 * (2 - -3)]))
    torch.testing.assert_close(contrastive_losses(torch.tensor([1.0])), torch.tensor([math.log(1 + math.exp(-1))]))
    assert contrastive_losses(torch.tensor([-1e4])).item() == 1e4  # no overflow


@given(totals, totals, numbers, numbers, betas, st.booleans())
def test_lada_2_equal_models_have_no_margin(first, second, n_first, n_second, beta, per_token):
    pair = Pair(of(first, n_first), of(second, n_second))
    found = margins(pair, pair, Contrast(beta=beta, per_token=per_token))
    assert found.item() == 0
    loss = contrastive_losses(found)
    assert loss.item() == pytest.approx(math.log(2))
    assert loss.exp().item() == pytest.approx(2)


@given(st.lists(totals, min_size=4, max_size=4), numbers, numbers, betas)
def test_lada_2_swapped_paths_negate_the_margin(values, n_first, n_second, beta):
    student = Pair(of(values[0], n_first), of(values[1], n_second))
    reference = Pair(of(values[2], n_first), of(values[3], n_second))
    found = margins(student, reference, Contrast(beta=beta))
    assert margins(Pair(*student[::-1]), Pair(*reference[::-1]), Contrast(beta=beta)).item() == -found.item()


def gradient(bench, samples, positions, settings):
    with bench.training(bench.parameters) as trained:
        found = pair_loss(bench.forward, samples, positions, settings)
        return found, torch.cat([each.flatten() for each in torch.autograd.grad(found.loss, trained)])


def test_lada_2_equal_paths_add_no_gradient(bench, peer):
    samples, third = taught(bench, peer=peer), torch.tensor([2])
    assert TAUGHT[2] == OWN[2]
    found, with_contrast = gradient(bench, samples, third, Contrast(weight=5.0))
    _, without = gradient(bench, samples, third, Contrast(weight=0.0))
    assert found.margins.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(with_contrast, without, atol=1e-7, rtol=1e-5)
    _, other = gradient(bench, samples, torch.tensor([0]), Contrast(weight=5.0))
    assert (other - gradient(bench, samples, torch.tensor([0]), Contrast(weight=0.0))[1]).abs().max() > 1e-4


def margin_of(bench, samples, settings):
    with torch.no_grad():
        return pair_loss(bench.forward, samples, torch.tensor([0]), settings).margins.item()


def test_lada_3_a_small_step_widens_the_margin(bench, peer):
    samples, settings = taught(bench, peer=peer), Contrast(weight=1.0)
    before = margin_of(bench, samples, settings)
    with bench.training(bench.parameters) as trained:
        pair = [likelihood(*bench.forward({k: c[:1] for k, c in each.items()})) for each in samples[:2]]
        own = margins(Pair(*pair), samples.reference.at(torch.tensor([0])), settings)
        slopes = torch.autograd.grad(contrastive_losses(own).sum(), trained)
    with torch.no_grad():
        for tensor, slope in zip(bench.parameters.values(), slopes, strict=True):
            tensor -= 1e-3 * slope
    assert margin_of(bench, samples, settings) > before + 1e-6


def test_lada_3_for_a_small_beta_the_gradient_is_half_of_beta_times_that_of_the_difference():
    total = torch.tensor([-3.0, -4.0], requires_grad=True)
    student = Pair(Likelihood(total[:1], torch.tensor([2])), Likelihood(total[1:], torch.tensor([4])))
    reference = Pair(of(-5.0, 2), of(-3.0, 4))
    for beta in (1e-2, 1e-4):
        (found,) = torch.autograd.grad(
            contrastive_losses(margins(student, reference, Contrast(beta=beta))).sum(), total
        )
        torch.testing.assert_close(found / beta, -0.5 * torch.tensor([1 / 2, -1 / 4]), atol=beta, rtol=0)


def test_the_objective_by_hand():
    student, losses = torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 0.25])
    found = path_loss(student, losses, torch.tensor([3.0, 1.0]), 0.1)
    assert found.item() == pytest.approx((3 * 1.05 + 1 * 2.025) / 4)
    assert path_loss(student, losses, torch.zeros(2), 0.1).item() == 0


@given(st.floats(0.01, 100))
def test_lada_10_weights_have_no_scale(factor):
    generator = Rng(0).torch()
    student, losses, weights = (torch.rand(5, generator=generator) for _ in range(3))
    torch.testing.assert_close(
        path_loss(student, losses, weights * factor, 0.3), path_loss(student, losses, weights, 0.3)
    )


def test_lada_10_a_sample_that_was_not_chosen_has_no_gradient(bench, peer):
    samples, chosen = taught(bench, peer=peer), torch.tensor([0, 3])
    _, found = gradient(bench, samples, chosen, Contrast())
    _, weighted = gradient(bench, samples._replace(weights=torch.tensor([1.0, 0, 0, 1.0])), ALL, Contrast())
    torch.testing.assert_close(found, weighted, atol=1e-6, rtol=1e-4)
    changed = samples._replace(preferred=samples.preferred | {"labels": samples.preferred["labels"].clone()})
    changed.preferred["labels"][1:3] = 40
    assert torch.equal(gradient(bench, changed, chosen, Contrast())[1], found)
    assert gradient(bench, samples, ALL, Contrast())[1].sub(found).abs().max() > 1e-5


def test_lada_8_without_contrast_and_with_equal_weights_it_is_supervised_fine_tuning(bench):
    """Transformers' own loss of each row, as the oracle."""
    samples = taught(bench)
    found, slopes = gradient(bench, samples, ALL, Contrast(weight=0.0))
    with bench.training(bench.parameters) as trained:
        losses = []
        for ids, labels, mask in zip(
            *(samples.preferred[k] for k in ("input_ids", "labels", "attention_mask")), strict=True
        ):
            row = {"input_ids": ids[None].long(), "labels": labels[None], "attention_mask": mask[None]}
            losses.append(bench.model(**row).loss)
        whole = torch.stack(losses).mean()
        expected = torch.cat([each.flatten() for each in torch.autograd.grad(whole, trained)])
    torch.testing.assert_close(found.loss, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slopes, expected, atol=1e-6, rtol=1e-3)


def test_the_reference_is_the_teacher_or_the_student_at_the_start(bench, peer):
    teacher, start = taught(bench, peer=peer).reference, taught(bench).reference
    assert reference_of(Contrast(reference="peer"), teacher, start) is teacher
    assert reference_of(Contrast(reference="self"), teacher, start) is start
    found = pair_loss(bench.forward, taught(bench), ALL, Contrast())
    torch.testing.assert_close(found.margins, torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.losses, torch.full((4,), math.log(2)), atol=1e-5, rtol=0)
    assert pair_loss(bench.forward, taught(bench, peer=peer), ALL, Contrast()).margins.abs().max() > 1e-3


def test_rationales_and_answers_and_sequences_by_hand():
    rationale, answer = (
        Likelihood(torch.tensor([-6.0]), torch.tensor([3])),
        Likelihood(torch.tensor([-1.0]), torch.tensor([1])),
    )
    assert rationale_and_label_loss(rationale, answer, 0.25).item() == pytest.approx(0.25 * 2 + 0.75 * 1)
    student = Likelihood(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([1, 1, 1]))
    teacher = torch.tensor([math.log(0.3), math.log(0.1), -700.0])  # a question may have unlikely paths alone
    found = sequence_loss(student, teacher, torch.tensor([7, 7, 9]))
    assert found.item() == pytest.approx(((0.75 * 1 + 0.25 * 2) + 4) / 2)


def test_local_training_with_a_transfer_learns_the_taught_paths_beside_its_own_rows(bench, peer):
    samples, start = taught(bench, peer=peer), start_of(bench)
    training = Training(steps=12, batch_size=4)
    own = rows("causal-lm", 8)

    def trained(*penalties):
        fitted = fit(bench, own, start, bench.parameters, training, 0.02, Rng(0), penalties=penalties)
        bench.load(start | fitted.params)
        return likelihoods(bench, samples.preferred).mean, fitted

    plain, alone = trained()
    chosen = torch.tensor([0, 1])
    after, both = trained(transfer(bench.forward, samples, chosen, Contrast(), Rng(1), batch_size=2))
    assert (after[chosen] > plain[chosen] + 0.01).all()
    again, _ = trained(transfer(bench.forward, samples, chosen, Contrast(), Rng(1), batch_size=2))
    assert torch.equal(after, again)
    nothing, same = trained(transfer(bench.forward, samples, ALL[:0], Contrast(), Rng(1)))
    assert torch.equal(nothing, plain)
    assert all(torch.equal(alone.params[name], same.params[name]) for name in alone.params)
    assert any(not torch.equal(alone.params[name], both.params[name]) for name in alone.params)


def test_settings_are_bounded():
    assert problems_of(Contrast(), "transfer") == []
    assert len(problems_of(Contrast(weight=-1.0, beta=0.0, reference="both"), "transfer")) == 3
