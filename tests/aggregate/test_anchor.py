"""Coordinates pairwise to an anchor: planted lifts, least squares, canonical correlation, three models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from torch import Tensor

from fedquilt.aggregate.anchor import anchored_decoder, anchored_encoder, drawn_columns, polar, rank_outputs
from fedquilt.aggregate.axes import agreement, basis, consensus, coordinates, solve
from fedquilt.core.rng import Rng

RNG = Rng(11)


def normal(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=RNG.child(name).torch(), dtype=torch.float64)


def lift(wide: int, narrow: int, name: str) -> Tensor:
    """A matrix (wide, narrow) with orthonormal columns."""
    return torch.linalg.qr(normal(wide, narrow, name=name))[0]


def test_an_orthogonal_lift_of_the_anchor_has_the_same_rank_space_outputs_and_the_lifted_change() -> None:
    x, y = normal(80, 6, name="x") + 3.0, normal(80, 5, name="y") * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1])
    points = rank_outputs(x, 3, RNG)
    outputs, columns = drawn_columns(y, 3, 5, RNG, ridge=1e-10)
    before, after = lift(11, 6, "before"), lift(9, 5, "after")
    a, larger_a = (anchored_encoder(own, points, ridge=1e-8) for own in (x, x @ before.T))
    b, larger_b = (anchored_decoder(own, outputs, columns, ridge=1e-10) for own in (y, y @ after.T))
    assert torch.allclose(x @ before.T @ larger_a.T, points, atol=1e-6)
    assert torch.allclose(larger_a, a @ before.T, atol=1e-6)
    assert torch.allclose(larger_b, after @ b, atol=1e-6)


def test_the_anchor_finds_its_own_factors_again() -> None:
    x, y = normal(80, 6, name="x"), normal(80, 5, name="y")
    points = rank_outputs(x, 3, RNG)
    outputs, columns = drawn_columns(y, 3, 5, RNG)
    a = anchored_encoder(x, points, ridge=1e-12)
    b = anchored_decoder(y, outputs, columns)
    assert torch.allclose(x @ a.T, points, atol=1e-8)
    assert torch.allclose(a @ a.T, torch.eye(3, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(b.T @ b, torch.eye(3, dtype=torch.float64), atol=1e-10)


def test_the_encoder_is_the_orthonormalised_least_squares_fit() -> None:
    x, z = normal(60, 7, name="x") + 1.0, normal(60, 2, name="z")
    fitted = torch.linalg.lstsq(x, z).solution.T
    u, _, v = np.linalg.svd(fitted.numpy(), full_matrices=False)
    assert np.allclose(anchored_encoder(x, z, ridge=1e-13).numpy(), u @ v, atol=1e-8)


def test_canonical_variates_of_the_anchor_go_to_those_of_the_other_model() -> None:
    """Against scikit-learn: u in whitened outputs of one model is mapped to the v that it correlates with."""
    hidden = normal(500, 3, name="hidden") * torch.tensor([1.0, 0.7, 0.4])
    y1, y2 = (hidden @ normal(3, d, name=f"map {d}") + 0.1 * normal(500, d, name=f"noise {d}") for d in (3, 3))
    y1, y2 = y1 - y1.mean(0), y2 - y2.mean(0)
    outputs, columns = drawn_columns(y1, 2, 3, RNG, ridge=1e-12)
    b1, b2 = (anchored_decoder(own, outputs, columns, ridge=1e-12) for own in (y1, y2))
    cca = CCA(n_components=3, scale=False, max_iter=5000, tol=1e-12).fit(y1.numpy(), y2.numpy())
    u, v = (np.asarray(part) for part in cca.transform(y1.numpy(), y2.numpy()))
    u, v = u / u.std(0), v / v.std(0)
    w1, w2 = (np.linalg.lstsq(own.numpy(), part, rcond=None)[0] for own, part in ((y1, u), (y2, v)))
    assert np.allclose(w2.T @ b2.numpy(), w1.T @ b1.numpy(), atol=1e-4)


def test_a_wider_model_keeps_as_many_directions_as_the_anchor() -> None:
    outputs, columns = drawn_columns(normal(40, 6, name="y"), 2, 4, RNG)
    assert outputs.shape == (40, 4)
    assert columns.shape == (4, 2)
    assert anchored_decoder(normal(40, 30, name="wide"), outputs, columns).shape == (30, 2)
    assert anchored_decoder(normal(40, 3, name="narrow"), outputs, columns).shape == (3, 2)


def test_a_direction_without_variance_is_left_out() -> None:
    y = normal(10, 30, name="y")
    y[:, 20:] = 0.0
    outputs, columns = drawn_columns(y, 2, 12, RNG)
    b = anchored_decoder(y, outputs, columns)
    assert torch.isfinite(b).all()
    assert b[20:].abs().max() < 1e-10
    assert b.norm() < 2.0


def test_pairwise_maps_of_three_models_do_not_compose() -> None:
    """Two larger models share with each other what the anchor lacks: the consensus finds it, the anchor cannot."""
    shared, other = normal(400, 2, name="shared"), normal(400, 2, name="other")
    noise = [0.3 * normal(400, d, name=f"noise {d}") for d in (3, 8, 9)]
    anchor = other @ normal(2, 3, name="anchor") + noise[0]
    models = [
        anchor,
        *(torch.cat((2 * shared, 0.1 * other), 1) @ normal(4, n.shape[1], name=f"m{n.shape}") + n for n in noise[1:]),
    ]
    points = rank_outputs(anchor, 2, RNG)
    pairwise = [one @ anchored_encoder(one, points).T for one in models]
    jointly = consensus([basis(one, 9) for one in models], 2).points
    common = [coordinates(solve(one, jointly), one) for one in models]
    assert agreement(common[1:]).min() > agreement(pairwise[1:]).max() + 0.3


@pytest.mark.parametrize("shape", [(2, 5), (5, 2)])
def test_the_polar_factor_is_orthonormal_and_nearest(shape: tuple[int, int]) -> None:
    matrix = normal(*shape, name="matrix")
    factor = polar(matrix)
    gram = factor @ factor.T if shape[0] < shape[1] else factor.T @ factor
    assert torch.allclose(gram, torch.eye(2, dtype=torch.float64))
    nearest = (matrix - factor).norm()
    for trial in range(20):
        other = polar(factor + 0.1 * normal(*shape, name=f"trial {trial}"))
        assert nearest <= (matrix - other).norm()
