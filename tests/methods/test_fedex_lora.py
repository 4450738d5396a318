"""FedEx-LoRA on real clients: base and adapter together are the exact mean, and a bounded residual comes later."""

from __future__ import annotations

import pytest
import torch
from promises import Setup, play
from recording import in_round, mean_change, recorded, weights
from small_federation import GPT2, small

from fedquilt.core.errors import ConfigError
from fedquilt.core.factors import factors
from fedquilt.methods.fedex_lora import fedex_lora
from fedquilt.methods.fedit import fedit


def scene_and_setup(factory=fedex_lora, model=None, **settings):
    more, layers = ({}, 4) if model is None else ({"model": model}, 3)
    scene = small(budgets=(layers,) * 3, **more)
    return scene, Setup(factory(scene.federation, **settings), scene.federation.profiles, scene.clients)


def used_shift(sent, scaling):
    """The shift that the round's clients worked on, by module."""
    pairs = weights({n: t for n, t in sent.used.items() if not n.endswith(".shift")}, scaling)
    whole = weights(sent.used, scaling)
    return {module: whole[module] - pairs[module] for module in whole}


@pytest.mark.parametrize("model", [None, GPT2])
def test_t23_base_and_adapter_are_the_exact_mean_of_what_clients_had(model):
    """T23: ``W' + s B A = W + sum_k p_k s B_k A_k`` in every round; GPT-2's Conv1D is transposed and not square."""
    scene, setup = scene_and_setup(model=model)
    scaling = scene.federation.scaling
    played, sent = recorded(setup, num_rounds=3)
    if model:
        assert {len(b) == a.shape[1] for b, a in factors(played.states[0]["params"]).values()} == {False}
    for number in range(3):
        now = weights(setup.method.view(played.states[number + 1], setup.profiles[0]).params, scaling)
        here = in_round(sent, number)
        was = used_shift(here[0], scaling)
        mean = mean_change(here, scaling)
        for module in mean:
            torch.testing.assert_close(now[module], was[module] + mean[module], rtol=0, atol=1e-6)
    assert any(float(shift.norm()) > 1e-5 for shift in played.states[-1]["base"]["shift"].values())


def test_t23_the_residual_has_rank_k_minus_1_times_r_and_travels_as_factors():
    """T23: three clients of rank 2."""
    _, setup = scene_and_setup()
    state = play(setup, num_rounds=1).states[-1]
    (change,) = state["base"]["log"]["changes"]
    assert len(change) == 8
    assert all(one["B"].shape == (8, 4) and one["A"].shape == (4, 8) for one in change.values())


def test_the_factors_are_those_of_fedit():
    ends = [play(scene_and_setup(factory)[1], num_rounds=1).states[-1]["params"] for factory in (fedex_lora, fedit)]
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-6, atol=1e-7)


def test_residual_rank_0_is_fedit_and_changes_no_base():
    ours, theirs = (
        play(scene_and_setup(fedex_lora, residual_rank=0)[1]),
        play(scene_and_setup(fedit)[1]),
    )
    for name, tensor in ours.states[-1]["params"].items():
        torch.testing.assert_close(tensor, theirs.states[-1]["params"][name], rtol=1e-4, atol=1e-6)
    assert ours.states[-1].keys() == {"params"}
    assert ours.traffic[-1][0].bytes_down == theirs.traffic[-1][0].bytes_down
    assert all(not memory for memory in ours.memories.values())


def test_a_residual_of_rank_1_is_the_best_one_and_the_rest_is_carried_over():
    """What was added and what is carried are together all that was lost so far."""
    scene, setup = scene_and_setup(residual_rank=1)
    scaling = scene.federation.scaling
    played, sent = recorded(setup, num_rounds=3)
    lost = {}
    for number in range(3):
        state, here = played.states[number + 1], in_round(sent, number)
        mean = mean_change(here, scaling)
        factors_only = weights(state["params"], scaling)
        for module in mean:
            lost[module] = lost.get(module, 0) + mean[module] - factors_only[module]
            left = state["carried"][module]
            carried = left["B"].double() @ left["A"].double()
            shift = state["base"]["shift"][module].double()
            torch.testing.assert_close(shift + carried, lost[module], rtol=0, atol=1e-6)
            assert torch.linalg.matrix_rank(state["base"]["log"]["changes"][-1][module]["B"]) == 1
    first = played.states[1]
    module = next(iter(first["base"]["shift"]))
    whole = mean_change(in_round(sent, 0), scaling)[module] - weights(first["params"], scaling)[module]
    u, s, vh = torch.linalg.svd(whole)
    torch.testing.assert_close(
        first["base"]["shift"][module].double(), s[0] * torch.outer(u[:, 0], vh[0]), rtol=0, atol=1e-6
    )


def test_a_residual_rank_below_0_is_refused():
    with pytest.raises(ConfigError, match=r"method\.residual_rank = -1: must be at least 0, or left out"):
        scene_and_setup(residual_rank=-1)
