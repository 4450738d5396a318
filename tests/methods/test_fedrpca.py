"""FedRPCA on real clients: what is added to the mean of factors grows with the scale, and 1 is FedIT."""

from __future__ import annotations

import pytest
import torch
from promises import Setup, play
from small_federation import small

from fedquilt.core.errors import ConfigError
from fedquilt.methods.fedit import fedit
from fedquilt.methods.fedrpca import fedrpca


def after(factory, num_rounds=1, **settings):
    scene = small(budgets=(4, 4, 4))
    setup = Setup(factory(scene.federation, **settings), scene.federation.profiles, scene.clients)
    return play(setup, num_rounds=num_rounds).states[-1]["params"]


def test_scale_1_is_fedit():
    ours, theirs = after(fedrpca, 2, sparse_scale=1.0), after(fedit, 2)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7)


def test_the_specific_part_is_added_in_proportion_and_the_head_is_fedits():
    base, twice, four = (after(fedrpca, sparse_scale=scale) for scale in (1.0, 2.0, 4.0))
    for name, mean in base.items():
        once = twice[name] - mean
        torch.testing.assert_close(four[name] - mean, 3 * once, rtol=1e-4, atol=1e-6)
        assert bool(once.any()) == ("lora" in name)


def test_the_default_is_2():
    ours, theirs = after(fedrpca), after(fedrpca, sparse_scale=2.0)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_scale_below_0_is_refused():
    with pytest.raises(ConfigError, match=r"method\.sparse_scale = -1\.0: must be at least 0"):
        after(fedrpca, sparse_scale=-1.0)
