"""The control that sends noise in place of the bank."""

from __future__ import annotations

import torch
from promises import Setup, play
from small_federation import VIT, WIDE, several

from fedquilt.bank.merge import slots_in
from fedquilt.client import Training
from fedquilt.methods.h2tune import h2tune


def test_clients_get_noise_of_the_banks_norms_and_what_they_learn_lands_on_the_bank():
    training = Training(steps=2, epochs=None, batch_size=4, learning_rate=0.05)
    scene = several((VIT, WIDE), training=training)
    shared, noisy = (h2tune(scene.federation, deviation=0.3, bank=kind) for kind in ("shared", "noise"))
    played = play(Setup(noisy, scene.federation.profiles, scene.clients), num_rounds=1)
    state, after = played.states
    profile = scene.federation.profiles[0]
    sent, bank = (slots_in(method.view(state, profile).params) for method in (noisy, shared))
    for site, slots in bank.items():
        assert not torch.allclose(sent[site], slots, atol=0.05)
        torch.testing.assert_close(sent[site].norm(dim=1), slots.norm(dim=1))
        moved = float((after["params"][site] - state["params"][site]).norm())
        assert 0 < moved < 0.5 * float(state["params"][site].norm())  # of the bank, and not of noise
