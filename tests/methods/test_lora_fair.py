"""LoRA-FAIR on real clients: the mean A, and the B that brings the product nearest to the mean product."""

from __future__ import annotations

import pytest
import torch
from promises import Setup, play
from recording import mean_change, recorded, weights
from small_federation import small

from fedquilt.core.errors import ConfigError
from fedquilt.core.factors import factors
from fedquilt.methods.fedit import fedit
from fedquilt.methods.lora_fair import lora_fair


def scene_and_setup(factory=lora_fair, **settings):
    scene = small(budgets=(4, 4, 4))
    return scene, Setup(factory(scene.federation, **settings), scene.federation.profiles, scene.clients)


def test_t24_a_is_fedits_and_what_is_still_lost_is_orthogonal_to_it():
    """T24: at strength 0 the residual has nothing left in the rows of A."""
    scene, setup = scene_and_setup(strength=0.0)
    played, sent = recorded(setup, num_rounds=1)
    plain = play(scene_and_setup(fedit)[1], num_rounds=1).states[-1]["params"]
    mean, scaling = mean_change(sent, scene.federation.scaling), scene.federation.scaling
    ours, theirs = weights(played.states[-1]["params"], scaling), weights(plain, scaling)
    for module, (_, a) in factors(played.states[-1]["params"]).items():
        torch.testing.assert_close(a, plain[f"{module}.lora_A"], rtol=1e-6, atol=1e-7)
        left = mean[module] - ours[module]
        torch.testing.assert_close(left @ a.double().T, torch.zeros(8, 2, dtype=torch.float64), rtol=0, atol=1e-6)
        assert float(left.norm()) < float((mean[module] - theirs[module]).norm())


def test_t24_a_large_strength_is_fedit():
    """T24"""
    ours, theirs = (
        play(setup, num_rounds=2).states[-1]["params"]
        for setup in (scene_and_setup(strength=1e9)[1], scene_and_setup(fedit)[1])
    )
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_a_strength_below_0_is_refused():
    with pytest.raises(ConfigError, match=r"method\.strength = -0\.5: must be at least 0"):
        scene_and_setup(strength=-0.5)
