"""FedEx-LoRA's residual and LoRA-FAIR's refinement against dense sums, numpy's least squares and autograd."""

import numpy as np
import pytest
import torch
from drawn_factors import (
    TOLERANCE,
    clients,
    copies,
    dense_mean,
    laws,
    matrix,
    product_of,
    regauged,
    unchanged,
)
from hypothesis import given
from hypothesis import strategies as st
from nearness import assert_near
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedquilt.adapters.lora.module import LoraLinear
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.aggregate.lowrank.kernel import dense, norm, product_distance, stacked, summed, svd
from fedquilt.aggregate.lowrank.residual import mean_factors, rationed, refined, residual
from fedquilt.core.errors import RoundError
from fedquilt.core.factors import Factors, Product
from fedquilt.core.rng import Rng

one_rank = clients(one_rank=True)
every_dtype = clients(tuple(TOLERANCE), one_rank=True)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


# The mean of factors and what it loses ------------------------------------------------------------


@laws
@given(every_dtype)
def test_t23_mean_factors_and_residual_make_up_the_exact_mean(made):
    """T23: ``B A + R = sum_k w_k s_k B_k A_k`` for weights that are not square, with (K - 1) r columns."""
    before = copies(made)
    mean, lost, moved = mean_factors(made), residual(made), refined(made)
    rationed(lost, 1, lost)
    assert unchanged(made, before)
    assert [(t.shape, t.dtype) for t in moved] == [(t.shape, t.dtype) for t in mean]
    dtype, rank = made[0].B.dtype, made[0].A.shape[0]
    assert {t.dtype for t in (*mean, *lost)} == {dtype}
    assert lost.rank == (len(made) - 1) * rank
    size = 1 + sum(float(c.scale * c.B.double().norm() * c.A.double().norm()) for c in made) * len(made)
    assert_near((matrix(mean) + matrix(lost)) / size, dense_mean(made) / size, TOLERANCE[dtype])


def test_t23_by_hand():
    """T23: B 1 and 3, A 2 and 6, equal weights: mean 10, product of means 2 * 4, residual 2; alone, nothing is lost."""
    made = [Factors(rows([1.0]), rows([2.0])), Factors(rows([3.0]), rows([6.0]))]
    assert float(matrix(mean_factors(made))) == 8.0
    assert float(matrix(residual(made))) == 2.0
    scaled = [Factors(rows([1.0]), rows([2.0]), 2.0, 1), Factors(rows([3.0]), rows([6.0]), 4.0, 3)]
    # s B: 2 and 12; means 9.5 and 5; mean of products 1/4 * 4 + 3/4 * 72 = 55
    assert float(matrix(mean_factors(scaled))) == 47.5
    assert float(matrix(residual(scaled))) == 7.5
    alone = residual(made[:1])
    assert alone.rank == 0
    assert dense(alone).tolist() == [[0.0]]


@laws
@given(one_rank, st.sampled_from(["A", "B"]))
def test_a_common_factor_leaves_no_residual(made, common):
    """Of B it is exact to the bit; of A too, as the rows are differences."""
    same = [c._replace(A=made[0].A) if common == "A" else c._replace(B=made[0].B, scale=2.0) for c in made]
    assert not bool(matrix(residual(same)).any())
    assert norm(residual(same)) == 0.0


@laws
@given(one_rank, st.integers(2, 4))
def test_equal_clients_lose_nothing_and_keep_their_bits(made, num):
    same = [made[0]._replace(weight=1 + k) for k in range(num)]
    assert norm(residual(same)) == 0.0
    mean = mean_factors(same)
    assert torch.equal(mean.B, made[0].B * made[0].scale)
    assert torch.equal(mean.A, made[0].A)
    again = refined(same)
    assert torch.equal(again.B, mean.B)


@laws
@given(one_rank, st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(made, random):
    mixed = list(made)
    random.shuffle(mixed)
    assert_near(matrix(residual(mixed)), matrix(residual(made)), 1e-9)
    assert_near(matrix(refined(mixed)), matrix(refined(made)), 1e-8)
    assert_near(matrix(mean_factors(mixed)), matrix(mean_factors(made)))


@laws
@given(one_rank, st.integers(0, 2**32))
def test_fedex_is_blind_to_the_gauge(made, seed):
    other = regauged(made, seed)
    assert_near(
        matrix(mean_factors(other)) + matrix(residual(other)), matrix(mean_factors(made)) + matrix(residual(made)), 1e-9
    )


def test_fedit_is_not_blind_to_the_gauge_and_lora_fair_neither():
    made = [Factors(*product_of(6, 3, 5, seed=seed), weight=seed + 1) for seed in range(3)]
    other = regauged(made, 1)
    for client, changed in zip(made, other, strict=True):
        assert_near(matrix(client), matrix(changed))
    for combined in (mean_factors, refined):
        apart = product_distance(combined(made), combined(other))
        assert apart > 0.1 * norm(combined(made))


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 9), lambda: Conv1D(9, 6)], ids=["Linear", "Conv1D"])
def test_t23_a_base_that_took_the_residual_in_computes_the_exact_mean(make):
    """T23: through live modules that are not square; the released code always turns the residual."""
    with Rng(5, ("residual",)).scope():
        base, x = make(), torch.randn(11, 6)
        nn.init.normal_(base.weight)
        made = [
            Factors(torch.randn(9, 2), torch.randn(2, 6), LoraSettings(rank=2, alpha=8.0).scaling("q"), weight)
            for weight in (1, 3, 4)
        ]
    layer = LoraLinear(base, LoraSettings(rank=2, alpha=8.0))
    plain = base(x).detach()
    mean = mean_factors(made)
    with torch.no_grad():
        base.weight += dense(residual(made), fan_in_fan_out=layer.fan_in_fan_out)
        layer.lora_A.copy_(mean.A)
        layer.lora_B.copy_(mean.B / layer.scaling)
    ideal = plain.double() + x.double() @ dense_mean(made).T
    torch.testing.assert_close(layer(x).detach().double(), ideal, rtol=1e-4, atol=1e-4)
    layer.active = False
    assert float((layer(x) - plain).detach().abs().max()) > 0.1  # the residual is not small here


def test_t23_small_drifts_are_not_lost_in_a_difference_of_large_products():
    """In single precision: deviations of 1e-5 beside factors of size 1; the residual, of 1e-10, is still right."""
    start = product_of(40, 4, 30, dtype=torch.float64)
    made = []
    for seed in range(4):
        drift = product_of(40, 4, 30, seed=seed + 1)
        made.append(Factors((start.B + 1e-5 * drift.B).float(), (start.A + 1e-5 * drift.A).float()))
    own = [(c.B.double(), c.A.double()) for c in made]
    b, a = sum(x for x, _ in own) / 4, sum(y for _, y in own) / 4
    exact = sum((x - b) @ (y - a) for x, y in own) / 4
    assert float((matrix(residual(made)) - exact).norm() / exact.norm()) < 1e-5
    naive = sum(c.B @ c.A for c in made) / 4 - (sum(c.B for c in made) / 4) @ (sum(c.A for c in made) / 4)
    assert float((naive.double() - exact).norm() / exact.norm()) > 1.0  # the plain difference holds only rounding


# The knob ------------------------------------------------------------


@laws
@given(one_rank, st.integers(0, 8))
def test_what_is_sent_is_the_best_of_its_rank_and_the_rest_is_carried(made, rank):
    lost = residual(made)
    sent, carried = rationed(lost, rank)
    assert sent.rank <= rank
    assert_near(matrix(sent) + matrix(carried), matrix(lost))
    s = np.linalg.svd(matrix(lost).numpy(), compute_uv=False)
    assert norm(carried) == pytest.approx(np.sqrt((s[rank:] ** 2).sum()), abs=1e-10)
    if rank == 0:
        assert norm(sent) == 0.0  # FedIT
    if rank >= lost.rank:
        assert norm(carried) < 1e-10  # FedEx-LoRA
    assert {t.dtype for t in (*sent, *carried)} == {torch.float64}


@laws
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=5), st.integers(1, 4))
def test_error_feedback_sends_late_and_loses_nothing(seeds, rank):
    due, delivered, carried = [], [], None
    for seed in seeds:
        lost = product_of(6, 3, 5, seed=seed)
        sent, carried = rationed(lost, rank, carried)
        due.append(lost)
        delivered.append(sent)
    assert_near(matrix(summed(delivered)) + matrix(carried), matrix(summed(due)), 1e-9)
    assert carried.rank <= 5  # as a sum of stacks it would grow for ever


def test_a_bound_on_what_is_carried_drops_the_smallest():
    whole = Product(torch.diag(rows(5.0, 4.0, 3.0, 2.0).flatten()), torch.eye(4, dtype=torch.float64))
    sent, carried = rationed(whole, 1, carried_rank=2)
    assert svd(sent).S.tolist() == pytest.approx([5.0])
    assert svd(carried).S[:2].tolist() == pytest.approx([4.0, 3.0])
    assert carried.rank == 2
    assert rationed(whole, 1, carried_rank=0)[1].rank == 0


# LoRA-FAIR ------------------------------------------------------------


@laws
@given(one_rank, st.sampled_from([1e-3, 0.01, 1.0, 30.0]))
def test_t24_the_refinement_is_numpys_regularised_least_squares(made, strength):
    """T24: the minimiser of ``||D - (B + dB) A||^2 + strength ||dB||^2``, as an augmented least-squares problem."""
    mean = mean_factors(made)
    rest = dense_mean(made) - matrix(mean)
    r = mean.rank
    left = np.concatenate([mean.A.T.numpy(), np.sqrt(strength) * np.eye(r)])
    right = np.concatenate([rest.T.numpy(), np.zeros((r, len(mean.B)))])
    move = np.linalg.lstsq(left, right, rcond=None)[0].T
    ours = refined(made, strength)
    scale = 1 + float(np.abs(move).max())
    np.testing.assert_allclose((ours.B - mean.B).numpy() / scale, move / scale, rtol=0, atol=1e-7)
    assert torch.equal(ours.A, mean.A)


@laws
@given(one_rank, st.sampled_from([0.0, 0.01, 1.0]))
def test_t24_no_gradient_is_left_and_the_objective_is_never_above_fedits(made, strength):
    """T24: normal equations, by autograd."""
    mean, ours, target = mean_factors(made), refined(made, strength), dense_mean(made)

    def objective(b):
        return (target - b @ mean.A).square().sum() + strength * (b - mean.B).square().sum()

    b = ours.B.clone().requires_grad_()
    value = objective(b)
    (gradient,) = torch.autograd.grad(value, [b])
    size = 1 + float(target.norm() + matrix(mean).norm())
    assert float(gradient.norm()) < 1e-8 * size**2 * (1 + float(mean.A.norm()))
    assert float(value.detach()) <= float(objective(mean.B)) * (1 + 1e-9) + 1e-12


@laws
@given(one_rank)
def test_t24_the_limits(made):
    """T24: a huge strength is FedIT; none at all projects on the rows of the mean A: what is left is orthogonal."""
    mean = mean_factors(made)
    assert_near(refined(made, 1e15).B, mean.B, 1e-8)
    left = dense_mean(made) - matrix(refined(made, 0.0))
    size = (1 + float(dense_mean(made).norm())) * (1 + float(mean.A.norm()))
    assert float((left @ mean.A.T).norm()) < 1e-8 * size


@laws
@given(one_rank)
def test_t24_a_common_a_needs_no_refinement(made):
    """T24: where the mean of factors is exact B stays, at any strength."""
    same = [client._replace(A=made[0].A) for client in made]
    assert torch.equal(refined(same, 0.0).B, mean_factors(same).B)


def test_t24_by_hand():
    """T24: B 1 and 3, A 2 and 6: residual 2, mean A 4, so dB = 2 * 4 / (16 + strength)."""
    made = [Factors(rows([1.0]), rows([2.0])), Factors(rows([3.0]), rows([6.0]))]
    assert float(refined(made, 0.0).B) == pytest.approx(2.5)
    assert float(matrix(refined(made, 0.0))) == pytest.approx(10.0)  # rank 1 of 1 x 1: exact
    assert float(refined(made, 16.0).B) == pytest.approx(2.25)
    assert float(refined(made, 0.01).B) == pytest.approx(2 + 8 / 16.01)


def test_t24_a_mean_of_a_that_is_singular_or_zero_is_no_trouble():
    a = rows([1.0, 2.0, 0.0], [2.0, 4.0, 0.0])  # rank 1
    made = [Factors(product_of(4, 2, 3, seed=k).B, (1 + k) * a) for k in range(2)]
    ours = refined(made, 0.0)
    assert bool(ours.B.isfinite().all())
    assert_near(matrix(ours), dense_mean(made))  # the rows of D lie in those of A
    opposite = [made[0], made[0]._replace(A=-made[0].A)]
    assert torch.equal(refined(opposite, 0.0).B, mean_factors(opposite).B)


def test_t24_with_independent_factors_hardly_anything_can_be_given_back():
    """T24: of K clients that share nothing the mean of factors misses sqrt(1 - 1/K) of the mean of products.

    Of 10 clients 0.949; the refined B can only reach the rows of the mean A, and gets about a hundredth of it back.
    """
    made = [Factors(*product_of(200, 8, 160, seed=seed)) for seed in range(10)]
    whole = stacked(made)
    lost = product_distance(whole, mean_factors(made)) / norm(whole)
    assert lost == pytest.approx(np.sqrt(0.9), abs=0.01)
    assert norm(residual(made)) / norm(whole) == pytest.approx(lost, rel=1e-9)
    again = product_distance(whole, refined(made, 0.0)) / norm(whole)
    assert 0.9 < again < lost
    assert lost - again < 0.06


# What is refused ------------------------------------------------------------


def test_what_does_not_fit_is_told():
    made = [Factors(torch.zeros(4, r), torch.zeros(r, 3)) for r in (2, 3)]
    for combined in (mean_factors, residual, refined):
        with pytest.raises(ValueError, match=r"ranks are \[2, 3\]; factors of different ranks have no mean"):
            combined(made)
        with pytest.raises(RoundError, match="no adapters to combine"):
            combined([])
    with pytest.raises(ValueError, match=r"strength is -0\.1; it must be at least 0"):
        refined(made[:1], -0.1)
    for name, numbers in (("rank", {"rank": -1}), ("carried_rank", {"rank": 1, "carried_rank": -2})):
        with pytest.raises(ValueError, match=rf"^{name} is -\d; it must be at least 0"):
            rationed(stacked(made), **numbers)
