"""Robust PCA on planted matrices and by its optimality, and FedRPCA's mean by hand."""

import pytest
import torch
from drawn_factors import TOLERANCE, clients, copies, laws, matrix, unchanged
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.aggregate.lowrank.residual import mean_factors
from fedquilt.aggregate.lowrank.robust_pca import amplified_mean, client_specific, robust_pca
from fedquilt.core.errors import RoundError
from fedquilt.core.factors import Factors
from fedquilt.core.rng import Rng

one_rank = clients(one_rank=True, most=5)


def assert_near(left, right, tolerance=1e-3):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def planted(num_rows=200, num_columns=40, rank=2, share=0.04, seed=0):
    """A matrix of low rank, and a sparse one with entries as large as its own."""
    generator = Rng(seed, ("planted",)).torch()
    left = torch.randn(num_rows, rank, generator=generator, dtype=torch.float64)
    low = left @ torch.randn(rank, num_columns, generator=generator, dtype=torch.float64)
    hit = torch.rand(num_rows, num_columns, generator=generator) < share
    return low, torch.where(hit, 5 * torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64), 0.0)


def objective(low, sparse):
    weight = max(low.shape) ** -0.5
    return float(torch.linalg.matrix_norm(low, "nuc") + weight * sparse.abs().sum())


@pytest.mark.parametrize("seed", range(3))
def test_planted_parts_are_recovered(seed):
    low, sparse = planted(seed=seed)
    made = robust_pca(low + sparse)
    assert float((made.low_rank - low).norm() / low.norm()) < 1e-3
    assert float((made.sparse - sparse).norm() / sparse.norm()) < 1e-3
    assert int(torch.linalg.matrix_rank(made.low_rank, rtol=1e-3)) == 2
    assert not bool(made.sparse[sparse == 0].abs().gt(1e-2).any())


@laws
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32))
def test_the_parts_add_up_and_no_other_split_is_better(num_rows, num_columns, seed):
    """Convex, so that a split without a better neighbour is the best."""
    generator = Rng(seed, ("split",)).torch()
    whole = torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64)
    low, sparse = robust_pca(whole)
    assert_near(low + sparse, whole)
    ours = objective(low, whole - low)
    for size in (1e-3, 0.1, 1.0):
        step = size * torch.randn(whole.shape, generator=generator, dtype=torch.float64)
        assert ours <= objective(low + step, whole - low - step) * (1 + 1e-3)
    for other in (whole, torch.zeros_like(whole)):
        assert ours <= objective(other, whole - other) * (1 + 1e-3)


@pytest.mark.parametrize("factor", [1e-30, 1e30, -1.0])
def test_the_split_scales_with_the_matrix(factor):
    whole = sum(planted(30, 6))
    for ours, theirs in zip(robust_pca(whole * factor), robust_pca(whole), strict=True):
        assert_near(ours / factor, theirs)


def test_nothing_splits_into_nothing():
    low, sparse = robust_pca(torch.zeros(3, 2))
    assert not bool(low.any())
    assert not bool(sparse.any())


# What is specific to a client ------------------------------------------------------------


def test_what_all_share_is_not_specific():
    """Where all clients have one entry that sticks out, it is common, by what the least of them has of it."""
    updates = torch.zeros(400, 3, dtype=torch.float64)
    updates[0] = torch.tensor([9.0, 9.0, 9.0])
    updates[1, 2] = 7.0
    specific = client_specific(updates)
    assert float(robust_pca(updates).sparse[0, 0]) > 1  # by itself, robust PCA takes it for sparse
    assert_near(specific[0], torch.zeros(3, dtype=torch.float64))
    assert_near(specific[1:], updates[1:], 1e-3)


# The mean ------------------------------------------------------------


def test_one_clients_entry_counts_twice_by_hand():
    """Four clients, 400 entries of A: client 2 alone changed entry 5 by 8; the mean is 2, and twice that 4."""
    zeros = torch.zeros(1, 400, dtype=torch.float64)
    server = Factors(torch.ones(3, 1, dtype=torch.float64), zeros, 2.0)
    changed = zeros.clone()
    changed[0, 5] = 8.0
    made = [server._replace(A=changed if k == 2 else zeros) for k in range(4)]
    for scale, entry in ((0.0, 0.0), (1.0, 2.0), (2.0, 4.0), (4.0, 8.0)):
        ours = amplified_mean(server, made, scale)
        assert float(ours.A[0, 5]) == pytest.approx(entry, abs=1e-3)
        assert_near(ours.A[0, 6:], zeros[0, 6:])
        assert_near(ours.B, 2 * server.B)
    weighted = [client._replace(weight=5.0 if k == 2 else 1.0) for k, client in enumerate(made)]
    assert float(amplified_mean(server, weighted).A[0, 5]) == pytest.approx(2 * 5.0, abs=1e-3)


@laws
@given(one_rank)
def test_at_scale_1_it_is_the_mean_of_factors(made):
    ours, theirs = amplified_mean(made[-1], made, 1.0), mean_factors(made)
    assert torch.equal(ours.B, theirs.B)
    assert torch.equal(ours.A, theirs.A)


@laws
@given(one_rank, st.integers(1, 4))
def test_one_client_or_equal_clients_are_not_amplified(made, num):
    server, own = made[-1]._replace(scale=made[0].scale), made[0]
    ours = amplified_mean(server, [own._replace(weight=1.0 + k) for k in range(num)], 3.0)
    assert_near(ours.B, own.scale * own.B)
    assert_near(ours.A, own.A)


@laws
@given(one_rank, st.randoms(use_true_random=False))
def test_order_and_clients_without_weight_do_not_matter_and_inputs_stay(made, random):
    before = copies(made)
    mixed = [*made, Factors(made[0].B * 3, made[0].A - 2, made[0].scale, 0.0)]
    random.shuffle(mixed)
    ours, theirs = amplified_mean(made[0], made), amplified_mean(made[0], mixed)
    assert_near(theirs.B, ours.B, 1e-3)
    assert_near(theirs.A, ours.A, 1e-3)
    assert unchanged(made, before)


@laws
@given(clients(tuple(TOLERANCE), one_rank=True))
def test_shapes_and_dtypes_are_the_clients(made):
    ours = amplified_mean(made[0], made)
    assert [(t.shape, t.dtype) for t in ours] == [(t.shape, t.dtype) for t in (made[0].B, made[0].A)]
    assert bool(matrix(ours).isfinite().all())


def test_what_it_refuses():
    one = Factors(torch.ones(3, 2), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"sparse_scale is -1\.0; it must be at least 0"):
        amplified_mean(one, [one], -1.0)
    with pytest.raises(ValueError, match=r"ranks are \[2, 1\]"):
        amplified_mean(one, [Factors(torch.ones(3, 1), torch.ones(1, 4))])
    with pytest.raises(RoundError, match="no adapters to combine"):
        amplified_mean(one, [])
