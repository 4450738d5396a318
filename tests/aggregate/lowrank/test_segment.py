"""HETLoRA's parts: cutting, weighing, padding and pruning, against dense sums and by hand."""

import math

import pytest
import torch
from drawn_factors import TOLERANCE, clients, copies, laws, matrix, product_of, unchanged
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.aggregate.lowrank.residual import mean_factors
from fedquilt.aggregate.lowrank.segment import cut, padded, pruned_rank, segment_mean, sparsity_weights, tail
from fedquilt.core.errors import RoundError
from fedquilt.core.factors import Factors, Product

TOP = 6


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def base_of(made, seed=9):
    return product_of(len(made[0].B), TOP, made[0].A.shape[1], seed=seed, dtype=made[0].B.dtype)


@laws
@given(clients(), st.integers(0, 4), st.sampled_from([0.5, 1.0, 4.0]))
def test_t25_cutting_what_was_padded_gives_it_back(made, more, scale):
    """T25: trunc(pad(x)) = x, and padding changes no product."""
    product = Product(made[0].B, made[0].A)
    wider = padded(product, product.rank + more)
    assert wider.rank == product.rank + more
    assert torch.equal(matrix(wider), matrix(product)) or torch.allclose(matrix(wider), matrix(product), atol=1e-14)
    back = cut(wider, product.rank, scale)
    torch.testing.assert_close(back.B * scale, product.B)
    assert torch.equal(back.A, product.A)


@laws
@given(clients(tuple(TOLERANCE)))
def test_t25_weights_are_the_frobenius_norms_of_the_products(made):
    """T25: without forming B A, equal to ``sqrt(tr((B^T B)(A A^T)))`` and to the dense norm."""
    before = copies(made)
    ours = sparsity_weights([[client] for client in made])
    assert unchanged(made, before)
    dense = [c.scale * float(matrix(c).norm()) for c in made]
    assert ours == pytest.approx([d / sum(dense) for d in dense], rel=1e-9)
    traces = []
    for c in made:
        b, a = c.B.double(), c.A.double()
        traces.append(c.scale * math.sqrt(max(0.0, float(torch.trace((b.T @ b) @ (a @ a.T))))))
    assert ours == pytest.approx([t / sum(traces) for t in traces], rel=1e-6)
    assert sum(ours) == pytest.approx(1.0)


def test_t25_weights_over_several_modules_by_hand():
    """T25: norms 3 and 4 make 5 (scale 1), norm 2.5 with scale 2 makes 5: half each; what counts is B A, not B or A."""
    first = [Factors(rows([3.0]), rows([1.0])), Factors(rows([2.0]), rows([2.0]))]
    second = [Factors(rows([25.0]), rows([0.1]), 2.0)]
    assert sparsity_weights([first, second]) == pytest.approx([0.5, 0.5])
    assert sparsity_weights([first, second, second]) == pytest.approx([1 / 3] * 3)
    zero = [Factors(rows([0.0]), rows([7.0]))]
    assert sparsity_weights([first, zero]) == [1.0, 0.0]
    assert sparsity_weights([zero, zero]) == [0.5, 0.5]
    with pytest.raises(RoundError, match="no adapters to weigh; at least one client must answer"):
        sparsity_weights([])


@laws
@given(clients(tuple(TOLERANCE)))
def test_t25_each_rank_is_averaged_over_all_or_over_its_holders(made):
    """T25: dilution of the high ranks under "all", none under "segment"; what nobody holds stays to the bit."""
    base = base_of(made)
    before, base_before = copies(made), (base.B.clone(), base.A.clone())
    every, own = segment_mean(base, made), segment_mean(base, made, "segment")
    assert unchanged(made, before)
    assert torch.equal(base.B, base_before[0])
    assert torch.equal(base.A, base_before[1])
    total = sum(c.weight for c in made)
    for i in range(TOP):
        holders = [c for c in made if c.A.shape[0] > i]
        if not holders:
            for result in (every, own):
                assert torch.equal(result.B[:, i], base.B[:, i])
                assert torch.equal(result.A[i], base.A[i])
            continue
        b = sum(c.weight * c.scale * c.B[:, i].double() for c in holders)
        a = sum(c.weight * c.A[i].double() for c in holders)
        tolerance = TOLERANCE[base.B.dtype] * (1 + float(b.norm() + a.norm()) / total)
        for result, over in ((every, total), (own, sum(c.weight for c in holders))):
            assert result.B.dtype == base.B.dtype
            torch.testing.assert_close(result.B[:, i].double(), b / over, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(result.A[i].double(), a / over, rtol=tolerance, atol=tolerance)


def test_t25_by_hand():
    """T25: ranks 1 and 2 in weights 1 and 3, scale 2 on the second: its second column counts 3/4, or whole."""
    base = Product(rows([9.0, 9.0, 9.0]), rows([9.0], [9.0], [9.0]))
    made = [Factors(rows([4.0]), rows([8.0]), 1.0, 1), Factors(rows([2.0, 1.0]), rows([4.0], [6.0]), 2.0, 3)]
    every, own = segment_mean(base, made), segment_mean(base, made, "segment")
    assert every.B.tolist() == [[1.0 + 3.0, 1.5, 9.0]]
    assert every.A.tolist() == [[2.0 + 3.0], [4.5], [9.0]]
    assert own.B.tolist() == [[4.0, 2.0, 9.0]]
    assert own.A.tolist() == [[5.0], [6.0], [9.0]]


@laws
@given(clients(one_rank=True))
def test_t25_with_one_rank_both_are_the_mean_of_factors(made):
    """T25: equal ranks leave FedIT with other weights."""
    rank = made[0].A.shape[0]
    base = product_of(len(made[0].B), rank, made[0].A.shape[1])
    wanted = mean_factors(made)
    for normalize in ("all", "segment"):
        ours = segment_mean(base, made, normalize)
        torch.testing.assert_close(ours.B, wanted.B, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(ours.A, wanted.A, rtol=1e-11, atol=1e-11)


@laws
@given(clients(most=1), st.integers(1, 4))
def test_equal_clients_are_a_fixed_point(made, num):
    (one,) = made
    same = [one._replace(weight=1 + k) for k in range(num)]
    for normalize in ("all", "segment"):
        result = cut(segment_mean(base_of(made), same, normalize), one.A.shape[0], one.scale)
        torch.testing.assert_close(result.B, one.B, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result.A, one.A, rtol=1e-12, atol=1e-12)


@laws
@given(clients(), st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(made, random):
    mixed = list(made)
    random.shuffle(mixed)
    for normalize in ("all", "segment"):
        one, other = (segment_mean(base_of(made), some, normalize) for some in (made, mixed))
        torch.testing.assert_close(one.B, other.B, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.A, other.A, rtol=1e-12, atol=1e-12)


def test_t25_the_tail_by_hand_and_its_gradient():
    """T25: B's last columns have norm 5, A's last rows 2."""
    b = rows([1.0, 3.0, 0.0], [1.0, 0.0, 4.0]).requires_grad_()
    a = rows([7.0, 7.0], [2.0, 0.0], [0.0, 0.0])
    value = tail(Product(b, a), 1)
    assert value.item() == pytest.approx(10.0)
    value.backward()
    assert b.grad.tolist() == [[0.0, 1.2, 0.0], [0.0, 0.0, 1.6]]  # 2 * B / 5
    assert tail(Product(b, a), 3).item() == 0.0
    fresh = torch.zeros(2, 3, requires_grad=True)  # B as training starts: no NaN from the norm of zero
    tail(Product(fresh, a.float()), 1).backward()
    assert not bool(fresh.grad.any())


@laws
@given(st.integers(1, 64), st.floats(0, 10), st.floats(0, 10), st.floats(0.01, 1.0), st.integers(1, 8))
def test_t25_pruning_never_raises_a_rank_nor_goes_below_the_least(rank, before, after, gamma, least):
    """T25: monotone; a tail that did not shrink, and gamma 1, leave the rank alone."""
    ours = pruned_rank(rank, before, after, gamma=gamma, min_rank=least)
    assert min(rank, least) <= ours <= rank
    assert after < before or ours == rank
    assert pruned_rank(rank, before, after, gamma=1.0, min_rank=least) == rank


def test_t25_pruning_by_hand():
    """T25: floor(0.99 * 50) = 49; floor(0.29 * 100) = 29 although the product is a little less in binary."""
    assert pruned_rank(50, 2.0, 1.0) == 49
    assert pruned_rank(50, 1.0, 1.0) == 50
    assert pruned_rank(100, 2.0, 1.0, gamma=0.29) == 29
    assert pruned_rank(5, 2.0, 1.0, gamma=0.5, min_rank=4) == 4
    with pytest.raises(ValueError, match="gamma is 0; it must be above 0 and at most 1"):
        pruned_rank(5, 2.0, 1.0, gamma=0)


def test_what_does_not_fit_is_told():
    base = Product(torch.zeros(4, 2), torch.zeros(2, 3))
    one = Factors(torch.zeros(4, 2), torch.zeros(2, 3))
    for rank in (0, 3):
        with pytest.raises(ValueError, match=f"rank is {rank}; it must be from 1 to 2"):
            cut(base, rank)
    with pytest.raises(ValueError, match=r"scale is -1\.0; it must be above 0"):
        cut(base, 1, -1.0)
    with pytest.raises(ValueError, match="rank is 1; padding cannot reduce rank 2"):
        padded(base, 1)
    with pytest.raises(ValueError, match="normalize is 'row'; it must be 'all' or 'segment'"):
        segment_mean(base, [one], "row")
    with pytest.raises(ValueError, match=r"ranks are \[3\]; they must be at most the server's 2"):
        segment_mean(base, [Factors(torch.zeros(4, 3), torch.zeros(3, 3))])
    with pytest.raises(ValueError, match=r"adapter 1 is for a weight of \(5, 3\), adapter 0 for one of \(4, 3\)"):
        segment_mean(base, [one._replace(B=torch.zeros(5, 2))])
    with pytest.raises(RoundError, match="no adapters to combine"):
        segment_mean(base, [])
