"""The low-rank kernel against dense numpy, against PEFT, and by hand."""

import math

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
from peft import LoraConfig, get_peft_model
from torch import nn

from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.aggregate.lowrank import kernel
from fedquilt.aggregate.lowrank.kernel import (
    dense,
    folded,
    leading,
    norm,
    normalised,
    product_distance,
    redistributed,
    stacked,
    summed,
    svd,
    truncated,
)
from fedquilt.core.errors import RoundError
from fedquilt.core.factors import Factors, Product
from fedquilt.core.rng import Rng

EVERY_DTYPE = tuple(TOLERANCE)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


# The stack ------------------------------------------------------------


@laws
@given(clients(EVERY_DTYPE))
def test_t21_the_stack_is_the_dense_mean_of_unlike_ranks_scales_and_weights(made):
    """T21: exactly ``sum_k w_k s_k B_k A_k``; its rank is the sum of the ranks."""
    product = stacked(made)
    assert product.rank == sum(c.A.shape[0] for c in made)
    assert product.B.dtype == product.A.dtype == made[0].B.dtype
    assert product.B.shape[0] == len(made[0].B)
    assert product.A.shape[1] == made[0].A.shape[1]
    size = 1 + sum(float(c.scale * c.B.double().norm() * c.A.double().norm()) for c in made)
    assert_near(matrix(product) / size, dense_mean(made) / size, TOLERANCE[made[0].B.dtype])
    exact = stacked(made, keep_wide=True)
    assert exact.B.dtype == torch.float64
    assert_near(matrix(exact), dense_mean(made))


def test_t21_weight_and_scale_are_counted_once():
    """T21 by hand: 1/4 of 2 * 3 * 5 and 3/4 of 0.5 * 7 * 11; weights in both factors would give 1/16 and 9/16."""
    made = [Factors(rows([3.0]), rows([5.0]), 2.0, 100), Factors(rows([7.0]), rows([11.0]), 0.5, 300)]
    product = stacked(made)
    assert product.B.tolist() == [[0.25 * 2 * 3, 0.75 * 0.5 * 7]]
    assert product.A.tolist() == [[5.0], [11.0]]
    assert float(dense(product)) == 0.25 * 30 + 0.75 * 38.5


@laws
@given(clients(), st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(made, random):
    mixed = list(made)
    random.shuffle(mixed)
    assert_near(matrix(stacked(made)), matrix(stacked(mixed)))
    rank = min(len(made[0].B), made[0].A.shape[1])
    assert_near(matrix(redistributed(svd(stacked(made)), rank)), matrix(redistributed(svd(stacked(mixed)), rank)))


@laws
@given(clients(most=1), st.integers(1, 5), st.integers(1, 3))
def test_equal_clients_are_a_fixed_point_of_the_product(made, num, more):
    """Aggregating copies, in any weights, and handing the mean out at their rank or above gives the same product."""
    (one,) = made
    same = [one._replace(weight=1 + place) for place in range(num)]
    rank = one.A.shape[0] + more - 1
    given_back = redistributed(svd(stacked(same, keep_wide=True)), rank, one.scale)
    assert_near(one.scale * matrix(given_back), one.scale * one.B @ one.A)
    assert given_back.rank == rank


@laws
@given(clients(EVERY_DTYPE), st.integers(0, 8))
def test_nothing_that_was_given_is_changed_and_shapes_and_dtypes_are_told(made, rank):
    before = copies(made)
    product = stacked(made)
    parts = truncated(product, rank)
    given_back = redistributed(parts, rank, 0.5)
    norm(product), product_distance(product, given_back), summed([product, given_back])
    assert unchanged(made, before)
    dtype, d_out, d_in = made[0].B.dtype, len(made[0].B), made[0].A.shape[1]
    assert {t.dtype for t in (*parts, *given_back)} == {dtype}
    assert [tuple(t.shape) for t in parts] == [(d_out, rank), (rank,), (rank, d_in)]
    assert [tuple(t.shape) for t in given_back] == [(d_out, rank), (rank, d_in)]


@laws
@given(clients(), st.integers(1, 7), st.integers(0, 2**32))
def test_t22_flexlora_and_flora_are_blind_to_the_gauge(made, rank, seed):
    """T22: ``(B M, M^-1 A)`` for ``(B, A)``, each client its own M, changes neither the stack's nor the cut product."""
    other = regauged(made, seed)
    assert_near(matrix(stacked(other)), matrix(stacked(made)), 1e-9)
    parts = svd(stacked(made))
    if gap(parts.S, rank):
        assert_near(matrix(redistributed(svd(stacked(other)), rank)), matrix(redistributed(parts, rank)), 1e-7)


def gap(values, rank):
    """Whether the best matrix of this rank is unique, and well enough told from the next."""
    return rank >= len(values) or bool(values[rank - 1] - values[rank] > 1e-3 * values[0])


@laws
@given(clients(most=3), st.integers(1, 8), st.booleans())
def test_t29_only_the_product_counts_and_not_how_alpha_and_rank_make_it(made, rank, rslora):
    """T29: the same changes D_k by other alphas, ranks and rsLoRA have the same mean; the receiver's is undone."""
    restated = []
    for place, client in enumerate(made):
        r, extra = client.A.shape[0], place
        settings = LoraSettings(rank=r + extra, alpha=8.0 + 3 * place, rslora=rslora)
        s = settings.scaling("q")
        b = torch.cat([client.B * (client.scale / s), client.B.new_zeros(len(client.B), extra)], dim=1)
        a = torch.cat([client.A, torch.ones(extra, client.A.shape[1], dtype=client.A.dtype)])
        restated.append(Factors(b, a, s, client.weight))
    assert_near(matrix(stacked(restated)), matrix(stacked(made)))
    parts = svd(stacked(made))
    if gap(parts.S, rank):
        scales = [16 / rank, 16 / math.sqrt(rank)]
        one, other = (s * matrix(redistributed(svd(stacked(restated)), rank, s)) for s in scales)
        assert_near(one, other, 1e-9)
        assert_near(one, matrix(redistributed(parts, rank)), 1e-7)


# The decomposition ------------------------------------------------------------


@laws
@given(clients(), st.integers(0, 8))
def test_t22_the_cut_is_the_best_of_its_rank_and_the_core_has_numpys_singular_values(made, rank):
    """T22: Eckart-Young, and QR core = dense SVD, against numpy to 1e-10; also R above min(d) and rank above R."""
    product = stacked(made)
    whole = matrix(product).numpy()
    u, s, vh = np.linalg.svd(whole, full_matrices=False)
    parts = truncated(product, rank)
    kept = np.zeros(rank)
    kept[: min(rank, len(s))] = s[:rank]
    np.testing.assert_allclose(parts.S.numpy(), kept, rtol=1e-10, atol=1e-10)
    cut = (parts.U * parts.S) @ parts.Vh
    missing = math.sqrt((s[rank:] ** 2).sum())
    assert float(np.linalg.norm(whole - cut.numpy())) == pytest.approx(missing, rel=1e-10, abs=1e-10)
    assert product_distance(product, Product(parts.U * parts.S, parts.Vh)) == pytest.approx(missing, abs=1e-10)
    if gap(torch.from_numpy(s), rank) and rank:
        np.testing.assert_allclose(cut.numpy(), (u[:, :rank] * s[:rank]) @ vh[:rank], rtol=0, atol=1e-9)


def test_the_qr_core_is_numpys_dense_svd_at_a_real_size():
    product = product_of(96, 24, 64)
    u, s, vh = np.linalg.svd(matrix(product).numpy(), full_matrices=False)
    parts = svd(product)
    assert parts.S.shape == (24,)
    np.testing.assert_allclose(parts.S.numpy(), s[:24], rtol=1e-10)
    for rank in (1, 7, 23):
        ours = leading(parts, rank)
        theirs = (u[:, :rank] * s[:rank]) @ vh[:rank]
        np.testing.assert_allclose(((ours.U * ours.S) @ ours.Vh).numpy(), theirs, rtol=0, atol=1e-10 * s[0])
    assert_near(parts.U.T @ parts.U, torch.eye(24, dtype=torch.float64))
    assert_near(parts.Vh @ parts.Vh.T, torch.eye(24, dtype=torch.float64))


def many(count, rank, spread):
    """Clients whose changes have a common part, and a part of their own times ``spread``."""
    generator = Rng(3, ("many",)).torch()
    B, A = torch.randn(40, rank, generator=generator), torch.randn(rank, 30, generator=generator)
    return [
        Factors(
            B + spread * torch.randn(40, rank, generator=generator),
            A + spread * torch.randn(rank, 30, generator=generator),
            0.5,
            1.0 + number % 3,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0])
def test_a_folded_stack_is_within_its_bound_of_the_best_approximation(monkeypatch, spread):
    """``||D - D~_r|| <= ||D - D_r|| + 2 sum e``, with e the norms of what three folds leave out, by dense matrices."""
    monkeypatch.setattr(kernel, "WIDEST", 24)
    made, rank = many(20, 3, spread), 3
    whole = matrix(stacked(made, keep_wide=True)).numpy()
    shares = np.array([client.weight for client in made]) / sum(client.weight for client in made)
    sums, width, left_out = np.zeros((40, 30)), 0, []
    for share, client in zip(shares, made, strict=True):
        if width + 3 > 24:
            u, s, vh = np.linalg.svd(sums, full_matrices=False)
            left_out.append(float(np.sqrt((s[12:] ** 2).sum())))
            sums, width = (u[:, :12] * s[:12]) @ vh[:12], 12
        sums, width = sums + share * client.scale * (client.B.double() @ client.A.double()).numpy(), width + 3
    best = float(np.sqrt((np.linalg.svd(whole, compute_uv=False)[rank:] ** 2).sum()))
    parts = folded(made, rank)
    distance = float(np.linalg.norm(whole - ((parts.U * parts.S) @ parts.Vh).numpy()))
    assert len(left_out) == 3
    assert best * (1 - 1e-9) - 1e-9 <= distance <= best + 2 * sum(left_out) + 1e-9
    assert distance <= 1.05 * best + 1e-9
    nearest = (lambda u, s, vh: (u[:, :rank] * s[:rank]) @ vh[:rank])(*np.linalg.svd(sums, full_matrices=False))
    np.testing.assert_allclose(((parts.U * parts.S) @ parts.Vh).numpy(), nearest, atol=1e-9)


def test_a_short_stack_is_not_folded(monkeypatch):
    made = many(20, 3, 1.0)
    exact = svd(stacked(made, keep_wide=True), 3)
    for ours, theirs in zip(folded(made, 3), exact, strict=True):
        assert torch.equal(ours, theirs)
    monkeypatch.setattr(kernel, "WIDEST", 24)
    assert not torch.equal(folded(made, 3).U, exact.U)
    with pytest.raises(RoundError, match="no adapters to combine"):
        folded([], 3)


def test_a_client_wider_than_the_longest_stack_is_decomposed_as_it_is(monkeypatch):
    monkeypatch.setattr(kernel, "WIDEST", 4)
    made = many(2, 20, 1.0)
    exact = svd(stacked(made[:1], keep_wide=True), 2)
    for ours, theirs in zip(folded(made[:1], 2), exact, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert folded(made, 2).S.shape == (2,)


@laws
@given(clients())
def test_signs_are_settled_values_fall_and_dead_directions_are_zero(made):
    u, s, vh = svd(stacked(made))
    assert bool((s[:-1] >= s[1:]).all())
    assert bool((s >= 0).all())
    alive = s > 0
    largest = u[:, alive].gather(0, u[:, alive].abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())
    assert not bool(u[:, ~alive].any())
    assert not bool(vh[~alive].any())
    flipped = [c._replace(B=-c.B, A=-c.A) for c in made]  # the same products
    again = svd(stacked(flipped))
    assert torch.equal(again.S > 0, alive)
    assert_near(again.S, s)


def test_t22_a_lower_rank_gets_a_prefix_of_what_a_higher_rank_gets():
    """T22: nesting, with each receiver's own scale taken off B."""
    parts = svd(product_of(9, 6, 8))
    high, low = redistributed(parts, 5, 2.0), redistributed(parts, 3, 0.5)
    assert torch.equal(low.A, high.A[:3])
    assert torch.equal(low.B * 0.5, high.B[:, :3] * 2.0)


def test_t22_by_hand():
    """T22: diag(4, 1), turned: the larger part is 4 e_1 e_2^T; the error of rank 1 is 1."""
    product = Product(rows([4.0, 0.0], [0.0, -1.0]), rows([0.0, 1.0], [1.0, 0.0]))
    parts = truncated(product, 1)
    assert parts.U.tolist() == [[1.0], [0.0]]
    assert parts.S.tolist() == [4.0]
    assert parts.Vh.tolist() == [[0.0, 1.0]]
    left = redistributed(parts, 1, 2.0)
    assert left.B.tolist() == [[2.0], [0.0]]
    assert left.A.tolist() == [[0.0, 1.0]]
    even = redistributed(parts, 1, 1.0, split="even")
    assert even.B.tolist() == [[2.0], [0.0]]
    assert even.A.tolist() == [[0.0, 2.0]]
    assert product_distance(product, left.to(torch.float64)._replace(B=left.B * 2)) == pytest.approx(1.0)
    second = svd(product)
    assert second.U[:, 1].tolist() == [0.0, 1.0]  # -1 e_2 e_1^T: the sign is in Vh
    assert second.Vh[1].tolist() == [-1.0, 0.0]


@laws
@given(clients(), st.integers(1, 8), st.sampled_from([0.25, 1.0, 8.0]))
def test_where_the_singular_values_go_does_not_change_the_product(made, rank, scale):
    parts = svd(stacked(made))
    left, even = redistributed(parts, rank, scale), redistributed(parts, rank, scale, split="even")
    assert_near(scale * matrix(left), scale * matrix(even))
    assert_near(even.B.norm(dim=0), even.A.norm(dim=1))  # balanced


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 5, 1), (6, 1, 2), (3, 9, 4), (5, 0, 4)], ids=lambda shape: "x".join(map(str, shape))
)
def test_odd_shapes(shape, dtype):
    product = product_of(*shape, dtype=dtype)
    parts = svd(product)
    assert len(parts.S) == min(shape)
    tolerance = TOLERANCE[dtype] * (1 + norm(product))
    assert_near((parts.U.double() * parts.S.double()) @ parts.Vh.double(), matrix(product), tolerance)


@pytest.mark.parametrize("split", ["left", "even"])
def test_a_zero_stack_and_a_rank_above_the_numerical_rank_give_zeros_and_not_noise(split):
    zero = stacked([Factors(torch.zeros(4, 2), torch.randn(2, 3, generator=Rng(0).torch()), 2.0, 5)] * 2)
    parts = svd(zero)
    assert not any(bool(t.any()) for t in parts)
    assert norm(zero) == 0.0
    twice = product_of(6, 2, 5)
    deficient = summed([twice, twice, twice])  # R = 6, rank 2
    parts = truncated(deficient, 4)
    assert bool((parts.S[:2] > 0).all())
    assert parts.S[2:].tolist() == [0.0, 0.0]
    assert_near((parts.U * parts.S) @ parts.Vh, 3 * matrix(twice))
    given_back = redistributed(parts, 4, 1.0, split=split)
    assert not bool(given_back.B[:, 2:].any())
    assert not bool(given_back.A[2:].any())


def test_spare_rows_keep_dead_directions_trainable_and_the_product_as_it_is():
    parts, spare = svd(product_of(6, 2, 5)), torch.ones(4, 5, dtype=torch.float64)
    bare, fresh = redistributed(parts, 4), redistributed(parts, 4, spare=spare)
    assert torch.equal(matrix(bare), matrix(fresh))
    assert torch.equal(fresh.A[2:], spare[2:])
    assert torch.equal(fresh.A[:2], bare.A[:2])
    for factors, reached in ((bare, False), (fresh, True)):
        b, a = factors.B.clone().requires_grad_(), factors.A.clone()
        (gradient,) = torch.autograd.grad((b @ a).sum(), [b])
        assert bool(gradient[:, 2:].any()) == reached
    with pytest.raises(ValueError, match=r"spare rows are \(3, 5\); the factor A is \(4, 5\)"):
        redistributed(parts, 4, spare=spare[:3])


def test_what_clients_share_is_told_from_rounding_in_float32_too():
    """Three equal clients in single precision: the stack has rank 2, not 6 with four values of 1e-8."""
    one = product_of(40, 2, 30, dtype=torch.float32)
    made = [Factors(*one, scale=1.7, weight=weight) for weight in (1, 2, 4)]
    assert int((svd(stacked(made, keep_wide=True)).S > 0).sum()) == 2


@laws
@given(clients(most=1), st.integers(1, 8), st.sampled_from([0.5, 1.0, 4.0]))
def test_another_rank_is_the_nearest_and_exact_when_not_lower(made, rank, scale):
    (one,) = made
    again = redistributed(svd(stacked([one._replace(weight=1.0)], keep_wide=True), rank), rank, scale)
    target = one.scale * one.B @ one.A
    s = np.linalg.svd(target.numpy(), compute_uv=False)
    assert again.rank == rank
    missing = math.sqrt((s[rank:] ** 2).sum())
    assert float((scale * matrix(again) - target).norm()) == pytest.approx(missing, abs=1e-10)
    if rank >= one.A.shape[0]:
        assert_near(scale * matrix(again), target)


# Norms and orientation ------------------------------------------------------------


@laws
@given(clients())
def test_distance_and_norm_are_the_dense_ones(made):
    left, right = stacked(made), stacked(made[:1])
    assert norm(left) == pytest.approx(float(matrix(left).norm()), rel=1e-12)
    apart = float((matrix(left) - matrix(right)).norm())
    assert product_distance(left, right) == pytest.approx(apart, abs=1e-12 * (1 + norm(left) + norm(right)))
    assert product_distance(right, left) == pytest.approx(product_distance(left, right), abs=1e-12)
    assert product_distance(left, left) < 1e-13 * (1 + norm(left))


def test_the_distance_of_equal_products_is_rounding_and_not_its_root():
    product = product_of(200, 8, 100)
    halves = summed([product, product]).to(torch.float64)
    assert product_distance(Product(halves.B / 2, halves.A), product) < 1e-12 * norm(product)


@laws
@given(clients())
def test_the_dense_matrix_is_turned_for_conv1d_only(made):
    product = stacked(made)
    assert dense(product).shape == (len(made[0].B), made[0].A.shape[1])
    assert torch.equal(dense(product, fan_in_fan_out=True), dense(product).T)
    assert_near(dense(product), dense_mean(made))


# PEFT ------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v = nn.Linear(7, 5, bias=False), nn.Linear(5, 9, bias=False)

    def forward(self, x):
        return self.v(self.q(x))


@pytest.fixture
def peft_clients():
    """Three PEFT adapters of unlike rank, alpha and rule in one model, weights, and the same as our factors."""
    weights = [0.5, 0.2, 0.3]
    with Rng(3, ("peft",)).scope():
        model = None
        for place, (rank, alpha, rslora) in enumerate([(2, 8, False), (4, 4, True), (1, 3, False)]):
            config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=["q", "v"])
            if model is None:
                model = get_peft_model(Net(), config, adapter_name="0")
            else:
                model.add_adapter(str(place), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
    layers = {name: getattr(model.base_model.model, name) for name in ("q", "v")}
    ours = {
        name: [
            Factors(
                layer.lora_B[str(place)].weight.detach(),
                layer.lora_A[str(place)].weight.detach(),
                layer.scaling[str(place)],
                100 * weight,
            )
            for place, weight in enumerate(weights)
        ]
        for name, layer in layers.items()
    }
    return model, layers, weights, ours


def test_t21_peft_puts_adapters_beside_each_other_as_we_stack(peft_clients):
    """T21: ``combination_type="cat"`` has our stack's product, at our rank."""
    model, layers, weights, ours = peft_clients
    model.add_weighted_adapter(["0", "1", "2"], weights, "all", combination_type="cat")
    for name, layer in layers.items():
        product = stacked(ours[name])
        assert_near(dense(product), layer.get_delta_weight("all").detach(), 1e-5)
        assert product.rank == layer.r["all"] == 7


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_t22_peft_cuts_the_dense_sum_as_we_cut_the_stack(peft_clients, rank):
    """T22: ``combination_type="svd"`` spans our FlexLoRA product of that rank."""
    model, layers, weights, ours = peft_clients
    model.add_weighted_adapter(["0", "1", "2"], weights, "cut", combination_type="svd", svd_rank=rank)
    for name, layer in layers.items():
        cut = redistributed(svd(stacked(ours[name], keep_wide=True)), rank).to(torch.float32)
        assert_near(dense(cut), layer.get_delta_weight("cut").detach(), 1e-5)


# What is refused ------------------------------------------------------------


def test_what_does_not_fit_is_told():
    one = Factors(torch.zeros(4, 2), torch.zeros(2, 3))
    with pytest.raises(RoundError, match="no adapters to combine; at least one client must answer"):
        stacked([])
    with pytest.raises(ValueError, match=r"adapter 1 is for a weight of \(5, 3\), adapter 0 for one of \(4, 3\)"):
        stacked([one, one._replace(B=torch.zeros(5, 2))])
    with pytest.raises(ValueError, match=r"adapter 0: B is \(4, 2\) and A \(3, 3\)"):
        stacked([one._replace(A=torch.zeros(3, 3))])
    for weights in ([0.0, 0.0], [1.0, -1.0], [math.nan], [math.inf, 1.0]):
        with pytest.raises(ValueError, match=r"weights are .*; they must be finite and at least 0, and not all 0"):
            normalised(weights)
    parts = svd(Product(*one[:2]))
    with pytest.raises(ValueError, match="rank is -1; it must be at least 0"):
        leading(parts, -1)
    with pytest.raises(ValueError, match="scale is 0; it must be above 0"):
        redistributed(parts, 2, 0)
    with pytest.raises(ValueError, match="split is 'right'; it must be 'left' or 'even'"):
        redistributed(parts, 2, split="right")
