"""Common coordinates against planted factors, scikit-learn's CCA and a dense eigen-solver."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA
from torch import Tensor

from fedquilt.aggregate import axes as module
from fedquilt.aggregate.axes import agreement, basis, consensus, coordinates, decoder, solve
from fedquilt.aggregate.axes import rotation as drawn_rotation
from fedquilt.core.rng import Rng

WIDTHS = (7, 12, 20)


def planted(num_inputs: int, seed: int, *, noise: float = 0.05, rank: int = 3) -> tuple[Tensor, list[Tensor]]:
    """Hidden factors of falling strength, and their images in three models of different widths."""
    rng = Rng(seed).torch()
    hidden = torch.randn(num_inputs, rank, generator=rng, dtype=torch.float64)
    hidden = torch.linalg.qr(hidden - hidden.mean(0))[0] * num_inputs**0.5
    images = [hidden @ torch.randn(rank, width, generator=rng, dtype=torch.float64) + 5.0 for width in WIDTHS]
    return hidden, [one + noise * torch.randn(one.shape, generator=rng, dtype=torch.float64) for one in images]


def found(models: list[Tensor], rank: int, **options: float) -> Tensor:
    return consensus([basis(one, one.shape[1], **options) for one in models], rank).points


def rotation(width: int, seed: int) -> Tensor:
    return drawn_rotation(width, Rng(seed))


def test_a_rotation_is_orthogonal_and_of_its_stream() -> None:
    one = rotation(5, 1)
    assert torch.allclose(one @ one.T, torch.eye(5, dtype=torch.float64), atol=1e-12)
    assert torch.equal(one, rotation(5, 1))
    assert not torch.allclose(one, rotation(5, 2), atol=0.1)


def test_planted_factors_are_recovered() -> None:
    hidden, models = planted(400, 1)
    points = found(models, 3)
    inside = points @ (points.T @ hidden) / 400
    assert (inside - hidden).norm() / hidden.norm() < 0.02
    for one in models:
        seen = coordinates(solve(one, points), one)
        assert torch.allclose(seen, points, atol=0.2)


def test_unequal_agreement_recovers_each_factor_up_to_its_sign() -> None:
    rng = Rng(3).torch()
    hidden, _ = planted(2000, 4, rank=2)
    models = []
    for width in WIDTHS:
        own = torch.randn(2000, 2, generator=rng, dtype=torch.float64) * torch.tensor([0.2, 1.0])
        models.append((hidden + own) @ torch.randn(2, width, generator=rng, dtype=torch.float64))
    points = found(models, 2, ridge=1e-9)
    cosines = (points * hidden).sum(0).abs() / (points.norm(dim=0) * hidden.norm(dim=0))
    # the mean of K noisy copies: K / (K + noise^2), to the power of one half
    assert torch.allclose(cosines, torch.tensor([(3 / 3.04) ** 0.5, (3 / 4) ** 0.5], dtype=torch.float64), atol=0.03)


@given(seed=st.integers(0, 2**16), which=st.integers(0, 2))
def test_a_rotation_of_one_models_features_changes_nothing(seed: int, which: int) -> None:
    _, models = planted(60, seed, noise=0.5)
    rotated = [one @ rotation(one.shape[1], seed) if k == which else one for k, one in enumerate(models)]
    before, after = found(models, 3), found(rotated, 3)
    assert torch.allclose(before, after, atol=1e-6)
    sent, received = (coordinates(solve(group[which], before), group[which]) for group in (models, rotated))
    assert torch.allclose(sent, received, atol=1e-8)


@given(seed=st.integers(0, 2**16), order=st.permutations(range(3)))
def test_the_order_of_models_changes_nothing(seed: int, order: list[int]) -> None:
    _, models = planted(60, seed, noise=0.5)
    assert torch.allclose(found(models, 3), found([models[k] for k in order], 3), atol=1e-6)


@pytest.mark.parametrize("num_inputs", [15, 200])
def test_a_dense_eigen_solver_finds_the_same(num_inputs: int) -> None:
    _, models = planted(num_inputs, 5, noise=0.5)
    total = np.zeros((num_inputs, num_inputs))
    for one in models:
        centred = (one - one.mean(0)).numpy()
        covariance = centred.T @ centred / num_inputs
        ridge = 1e-3 * np.trace(covariance) / len(covariance)
        total += centred @ np.linalg.solve(covariance + ridge * np.eye(len(covariance)), centred.T) / num_inputs
    values, vectors = scipy.linalg.eigh(total)
    given_by = consensus([basis(one, 99) for one in models], 3)
    assert np.allclose(given_by.agreement, values[::-1][:3] / 3, atol=1e-9)
    cosines = (given_by.points.numpy() / num_inputs**0.5 * vectors[:, ::-1][:, :3]).sum(0)
    assert np.allclose(np.abs(cosines), 1, atol=1e-9)


def test_two_models_give_canonical_correlations() -> None:
    _, models = planted(500, 7, noise=1.0)
    first, second = models[0], models[1]
    oracle = CCA(n_components=2, max_iter=5000, tol=1e-12).fit(first.numpy(), second.numpy())
    left, right = oracle.transform(first.numpy(), second.numpy())
    expected = [np.corrcoef(left[:, k], right[:, k])[0, 1] for k in range(2)]
    ours = consensus([basis(one, 99, ridge=1e-12) for one in (first, second)], 2)
    assert np.allclose(2 * ours.agreement.numpy() - 1, expected, atol=1e-4)
    seen = [coordinates(solve(one, ours.points, ridge=1e-12), one) for one in (first, second)]
    assert np.allclose(agreement(seen), expected, atol=1e-4)


def test_points_are_uncorrelated_and_signs_are_fixed() -> None:
    _, models = planted(80, 9, noise=0.5)
    points = found(models, 3)
    assert torch.allclose(points.T @ points, 80 * torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(points.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-8)
    assert (points.gather(0, points.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_short_basis_keeps_what_varies_most() -> None:
    hidden, models = planted(300, 11)
    short = [basis(one, 4) for one in models]
    assert [one.shape for one in short] == [(300, 4)] * 3
    points = consensus(short, 3).points
    assert (points @ (points.T @ hidden) / 300 - hidden).norm() / hidden.norm() < 0.02


def test_agreement_on_held_out_inputs_tells_related_models_from_unrelated_ones() -> None:
    _, models = planted(600, 13, noise=0.5)
    rng = Rng(14).torch()
    strangers = [torch.randn(600, width, generator=rng, dtype=torch.float64) for width in WIDTHS]
    for features, low, high in ((models, 0.8, 1.0), (strangers, -0.1, 0.1)):
        points = found([one[:400] for one in features], 3)
        axes = [solve(one[:400], points) for one in features]
        figure = agreement([coordinates(ends, one[400:]) for ends, one in zip(axes, features, strict=True)])
        assert low < float(figure.mean()) < high


def test_constant_features_give_no_coordinates_and_no_error() -> None:
    _, models = planted(50, 15)
    models[0] = torch.ones_like(models[0])
    points = found(models, 3)
    axes = solve(models[0], points)
    assert torch.isfinite(points).all()
    assert not axes.encoder.isnan().any()
    assert torch.equal(coordinates(axes, models[0]), torch.zeros(50, 3, dtype=torch.float64))


def test_the_rank_is_bounded_by_inputs_and_columns() -> None:
    _, models = planted(10, 17)
    with pytest.raises(ValueError, match="rank is 11"):
        found(models, 11)
    with pytest.raises(ValueError, match="same ones"):
        consensus([basis(models[0], 3), basis(models[1][:9], 3)], 2)
    with pytest.raises(ValueError, match="at least two"):
        agreement([models[0]])


@pytest.mark.parametrize(("num_inputs", "width"), [(30, 12), (12, 30), (12, 12)])
def test_axes_solve_the_ridge_problem_whichever_side_is_longer(num_inputs: int, width: int) -> None:
    rng = Rng(31).torch()
    features = torch.randn(num_inputs, width, generator=rng, dtype=torch.float64) + 3.0
    points = torch.randn(num_inputs, 2, generator=rng, dtype=torch.float64)
    centred = features - features.mean(0)
    covariance = centred.T @ centred / num_inputs
    ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    found = solve(features, points)
    torch.testing.assert_close(found.encoder, torch.linalg.solve(covariance + ridge, centred.T @ points / num_inputs).T)
    torch.testing.assert_close(found.decoder, centred.T @ points / num_inputs)
    assert torch.equal(decoder(features, points), found.decoder)


@pytest.mark.parametrize(("num_inputs", "width"), [(40, 12), (12, 40)])
def test_features_that_are_read_in_parts_give_the_same_axes(num_inputs: int, width: int, monkeypatch) -> None:
    rng = Rng(32).torch()
    features, points = torch.randn(num_inputs, width, generator=rng), torch.randn(num_inputs, 3, generator=rng)
    whole = basis(features, 5), *solve(features, points)
    monkeypatch.setattr(module, "_PART", 7 * min(num_inputs, width))
    parts = basis(features, 5), *solve(features, points)
    signs = (whole[0] * parts[0]).sum(0).sign()
    torch.testing.assert_close(whole[0], parts[0] * signs, rtol=1e-9, atol=1e-9)
    for one, other in zip(whole[1:], parts[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
