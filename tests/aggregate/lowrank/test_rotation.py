"""Rotation to the server's factors against scipy's Procrustes, and the two means that rotations cannot change."""

import numpy as np
import pytest
import torch
from drawn_factors import TOLERANCE, clients, copies, dense_mean, laws, matrix, unchanged
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.aggregate.lowrank.kernel import norm
from fedquilt.aggregate.lowrank.residual import mean_factors
from fedquilt.aggregate.lowrank.rotation import gram_mean, rotated_mean, rotation
from fedquilt.core.errors import RoundError
from fedquilt.core.factors import Factors, Product
from fedquilt.core.rng import Rng

one_rank = clients(one_rank=True, most=5)
MEANS = {"fedrot-lora": rotated_mean, "florg": gram_mean}
either = pytest.mark.parametrize("combined", MEANS.values(), ids=MEANS.keys())


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def assert_near(left, right, tolerance=1e-9):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def orthogonal(rank, seed):
    drawn = torch.randn(rank, rank, generator=Rng(seed, ("turn",)).torch(), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def turned(client, seed):
    """The same product in other coordinates."""
    turn = orthogonal(client.A.shape[0], seed)
    return client._replace(B=client.B @ turn, A=turn.T @ client.A)


def together(product):
    """B^T beside A: what both rotations act on."""
    return torch.cat([product.B.T, product.A], dim=1)


def assert_both_near(left, right, tolerance=1e-8):
    assert_near(left.B, right.B, tolerance)
    assert_near(left.A, right.A, tolerance)


# The rotation ------------------------------------------------------------


@laws
@given(one_rank)
def test_the_rotation_is_scipys_procrustes(made):
    """As near as scipy's; the matrix itself is unique only where no direction is left over."""
    scipy = pytest.importorskip("scipy.linalg")
    moving, target = made[0], made[-1]
    turn = rotation(moving, target)
    assert_near(turn.T @ turn, torch.eye(len(turn), dtype=torch.float64))
    theirs, _ = scipy.orthogonal_procrustes(together(moving).T.numpy(), together(target).T.numpy())
    left, right = (float((together(moving).T @ torch.as_tensor(r) - together(target).T).norm()) for r in (turn, theirs))
    assert left == pytest.approx(right, rel=1e-9, abs=1e-7)


@laws
@given(one_rank, st.integers(0, 2**32))
def test_a_rotation_is_undone(made, seed):
    """Towards where it came from; also where the rank is above what the factors can fill."""
    (client, *_) = made
    other = turned(client, seed)
    back = rotation(other, client)
    assert_near(other.B @ back, client.B, 1e-7)
    assert_near(back.T @ other.A, client.A, 1e-7)


@laws
@given(one_rank)
def test_who_has_not_moved_is_not_turned(made):
    (client, *_) = made
    assert_near(rotation(client, client), torch.eye(client.A.shape[0], dtype=torch.float64), 1e-7)


def test_rotations_by_hand():
    """Exchanged rows, a reflected row, and a direction of which nothing is known."""
    none = torch.zeros(3, 2, dtype=torch.float64)
    target = Product(none, rows([2.0, 0.0], [0.0, 1.0]))
    swapped, flipped = Product(none, rows([0.0, 1.0], [2.0, 0.0])), Product(none, rows([2.0, 0.0], [0.0, -1.0]))
    assert_near(rotation(swapped, target), rows([0.0, 1.0], [1.0, 0.0]))
    assert_near(rotation(flipped, target), rows([1.0, 0.0], [0.0, -1.0]))
    assert_near(rotation(Product(none, rows([-2.0, 0.0], [0.0, 0.0])), target), rows([-1.0, 0.0], [0.0, 1.0]))
    assert_near(rotation(Product(none, none[:2]), target), torch.eye(2, dtype=torch.float64))


# The means ------------------------------------------------------------


def test_the_means_of_clients_that_are_rotated_apart_by_hand():
    """Two clients hold diag(2, 1), one with its factors exchanged: FedIT's mean loses most, the others nothing."""
    server = Factors(torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    one = Factors(rows([2.0, 0.0], [0.0, 1.0]), rows([1.0, 0.0], [0.0, 1.0]))
    two = Factors(rows([0.0, 2.0], [1.0, 0.0]), rows([0.0, 1.0], [1.0, 0.0]))
    assert_near(matrix(two), rows([2.0, 0.0], [0.0, 1.0]))
    assert_near(matrix(mean_factors([one, two])), rows([1.0, 1.0], [0.5, 0.5]))
    for combined in MEANS.values():
        assert_both_near(combined(server, [one, two]), one)


def test_a_mean_gram_matrix_by_hand():
    """Z = [B, A] of rank 1: [3, 0] of weight 1 and [0, 1] of weight 3; the mean is diag(9, 3) / 4, cut to 9 / 4."""
    server = Factors(rows([1.0]), rows([0.0]))
    made = [Factors(rows([3.0]), rows([0.0]), 1.0, 1), Factors(rows([0.0]), rows([1.0]), 1.0, 3)]
    assert_both_near(gram_mean(server, made), Factors(rows([1.5]), rows([0.0])))
    assert_both_near(gram_mean(Factors(rows([-1.0]), rows([0.0])), made), Factors(rows([-1.5]), rows([0.0])))
    scaled = [made[0]._replace(B=rows([1.5]), scale=2.0), made[1]._replace(scale=2.0)]
    assert_both_near(gram_mean(server._replace(scale=2.0), scaled), Factors(rows([1.5]), rows([0.0])))


@either
@laws
@given(made=one_rank, seeds=st.lists(st.integers(0, 2**32), min_size=5, max_size=5))
def test_clients_rotations_change_nothing(combined, made, seeds):
    """Where the rotation is unique: the server's factors fill all directions, as drawn ones do."""
    server = _filling(made)
    others = [turned(client, seed) for client, seed in zip(made, seeds, strict=False)]
    ours = combined(server, made)
    assert_near(matrix(combined(server, others)), matrix(ours), 1e-6 * (1 + norm(ours)))


@either
@laws
@given(made=one_rank, num=st.integers(1, 4))
def test_one_client_or_equal_clients_keep_their_product(combined, made, num):
    server, own = made[-1], made[0]
    same = [own._replace(weight=1.0 + k) for k in range(num)]
    size = 1 + own.scale * norm(Product(own.B, own.A))
    assert_near(matrix(combined(server, same)) / size, own.scale * own.B @ own.A / size)


@either
@laws
@given(made=one_rank, random=st.randoms(use_true_random=False))
def test_order_and_clients_without_weight_do_not_matter_and_inputs_stay(combined, made, random):
    server, before = _filling(made), copies(made)
    ours = combined(server, made)
    mixed = [*made, Factors(made[0].B * 3, made[0].A - 2, made[0].scale, 0.0)]
    random.shuffle(mixed)
    assert_near(matrix(combined(server, mixed)), matrix(ours), 1e-6 * (1 + norm(ours)))
    assert unchanged(made, before)


@either
@laws
@given(made=clients(tuple(TOLERANCE), one_rank=True))
def test_shapes_and_dtypes_are_the_clients(combined, made):
    ours = combined(made[0], made)
    assert [(t.shape, t.dtype) for t in ours] == [(t.shape, t.dtype) for t in (made[0].B, made[0].A)]


@laws
@given(made=one_rank)
def test_the_gram_matrix_is_numpys_best_of_its_rank(made):
    """Against the dense mean; a block of it is the exact mean of the products."""
    parts = np.array([client.weight for client in made], dtype=float)
    scaled = [Product(client.scale * client.B, client.A) for client in made]
    dense = sum(p * together(c).T @ together(c) for p, c in zip(parts / parts.sum(), scaled, strict=True))
    d_out = len(made[0].B)
    assert_near(dense[:d_out, d_out:], dense_mean(made))
    values, vectors = np.linalg.eigh(dense.numpy())
    rank = min(made[0].A.shape[0], len(values))
    best = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
    ours = together(gram_mean(made[0], made))
    missing, least = (float((dense - torch.as_tensor(gram)).norm()) for gram in (ours.T @ ours, best))
    assert missing == pytest.approx(least, rel=1e-7, abs=1e-9 * (1 + float(dense.norm())))


def test_of_another_rank_and_of_nobody():
    server = Factors(torch.ones(3, 2), torch.ones(2, 4))
    for combined in MEANS.values():
        with pytest.raises(ValueError, match=r"ranks are \[2, 1\]"):
            combined(server, [Factors(torch.ones(3, 1), torch.ones(1, 4))])
        with pytest.raises(RoundError, match="no adapters to combine"):
            combined(server, [])


def _filling(made):
    """Factors of the server's in which every direction can be told from the others."""
    rank, generator = made[0].A.shape[0], Rng(len(made), ("server",)).torch()
    a = torch.randn(rank, made[0].A.shape[1], generator=generator, dtype=torch.float64)
    return made[0]._replace(B=torch.randn(len(made[0].B), rank, generator=generator, dtype=torch.float64), A=a)
