"""FFA-LoRA: B is trained and averaged, A is nobody's to change or to send."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from promises import Setup, play, same
from small_federation import LLAMA, small
from stand_ins import cast, layers_of, run
from torch import nn

from fedquilt.adapters.lora.module import LoraLinear
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply
from fedquilt.methods.ffa_lora import ffa_lora


def names_of(scene, factor):
    return {name for name in scene.layout.depth if name.endswith(factor)}


def test_only_b_and_the_head_travel_either_way():
    scene = small(budgets=(2, 4, 4))
    setup = Setup(ffa_lora(scene.federation), scene.federation.profiles, scene.clients)
    fit, sent, got = setup.method.exchanges[0], [], []

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        sent.append(order.params.keys())
        got.append(reply.params.keys())
        assert fit.expects(order).keys() == reply.params.keys()
        return reply, memory

    watched = setup.method._replace(exchanges=(fit._replace(work=work),))
    played = play(setup._replace(method=watched), num_rounds=2)
    b, trained = names_of(scene, "lora_B"), {*scene.layout.names([2, 3]), *scene.layout.head}
    assert len(b) == 8
    assert all(keys == b | scene.layout.head for keys in sent)
    assert all(keys == trained - names_of(scene, "lora_A") for keys in got)
    assert not any(memory.get("params") for memory in played.memories.values())


def test_a_is_the_same_to_the_bit_after_all_rounds_and_b_moves():
    scene = small(LLAMA, budgets=(1, 2, 3))
    setup = Setup(ffa_lora(scene.federation), scene.federation.profiles, scene.clients)
    played = play(setup, num_rounds=3)
    first, last = played.states[0]["params"], played.states[-1]["params"]
    trained = {*scene.layout.names([2]), *scene.layout.head}
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == trained - names_of(scene, "lora_A")
    for profile in setup.profiles:
        view = setup.method.view(played.states[-1], profile)
        assert view.params.keys() == scene.layout.depth.keys()  # whole, so that there is a global score and an export
        used = scene.clients[profile.id].params(view)
        for name in names_of(scene, "lora_A"):
            assert torch.equal(used[name], scene.clients[profile.id].initial[name])  # the A that it trains with


def test_a_is_really_frozen():
    scene = small(budgets=(4, 4, 4))
    method, asked = ffa_lora(scene.federation), []
    training = scene.bench.training
    scene.bench.training = lambda names, *rest, **more: asked.append(set(names)) or training(names, *rest, **more)
    play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=1)
    assert len(asked) == 3
    assert all(names == names_of(scene, "lora_B") | scene.layout.head for names in asked)


def test_t20_a_whole_round_is_the_exact_mean_of_products():
    """T20 for FFA-LoRA: ``B A = sum_k p_k B_k A``."""
    scene = small(budgets=(4, 4, 4))
    method, sent = ffa_lora(scene.federation), []
    fit = method.exchanges[0]

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        sent.append(reply)
        return reply, memory

    watched = method._replace(exchanges=(fit._replace(work=work),))
    after = play(Setup(watched, scene.federation.profiles, scene.clients), num_rounds=1).end["state"]["params"]
    total = sum(reply.weight for reply in sent)
    start = scene.clients[0].initial
    for name in names_of(scene, "lora_B"):
        a = start[name.replace("lora_B", "lora_A")].double()
        dense = sum(reply.weight / total * reply.params[name].double() @ a for reply in sent)
        assert bool(dense.any())
        torch.testing.assert_close(after[name].double() @ a, dense, rtol=1e-5, atol=1e-9)


def test_the_first_step_from_zero_is_worked_by_hand():
    """Clients 0 and 1 with 10 and 30 rows send B of 1 and 5: the mean is 4; A, which they cannot send, stays."""
    scene = cast(num_layers=2, budgets=(2, 2), sizes=(10, 30))
    method = ffa_lora(scene.federation)
    state = method.init(None)
    replies = [
        Reply(k, {"m.layers.0.q_proj.lora_B": torch.full((2,), value)}, weight)
        for k, value, weight in ((0, 1.0, 10), (1, 5.0, 30))
    ]
    after = method.exchanges[0].merge(state, iter(replies))["params"]
    assert after["m.layers.0.q_proj.lora_B"].tolist() == [4.0, 4.0]
    assert after["m.layers.0.q_proj.lora_A"] is state["params"]["m.layers.0.q_proj.lora_A"]


def test_everybody_trains_the_layers_that_the_poorest_affords():
    scene = cast()
    (done,) = run(ffa_lora(scene.federation, shape="triangle"), scene, num_rounds=1)
    assert layers_of(done) == dict.fromkeys(range(3), tuple(range(6)))
    assert done.traffic[0].settings[0]["factors"] == ["lora_B"]
    even = run(ffa_lora(scene.federation, weighting="uniform"), scene, num_rounds=1)[0]
    assert not same(even.state, done.state)


@pytest.mark.parametrize("alpha", [4.0, 8.0])
def test_one_step_from_zero_is_a_dense_gradient_step_seen_through_a(alpha):
    """With G the gradient of the dense weight: ``dD = -rate s^2 G A^T A``; twice the alpha is four times the rate."""
    with Rng(2, ("ffa",)).scope():
        base, x, y = nn.Linear(6, 4), torch.randn(11, 6), torch.randn(11, 4)
    layer = LoraLinear(base, LoraSettings(rank=2, alpha=alpha))
    with torch.no_grad():
        layer.lora_A.copy_(torch.randn(2, 6, generator=Rng(3).torch()))
    weight = base.weight.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad((F.linear(x, weight, base.bias) - y).square().sum(), [weight])
    layer.lora_B.requires_grad_(True)
    (layer(x) - y).square().sum().backward()
    with torch.no_grad():
        layer.lora_B -= 1e-3 / alpha**2 * layer.lora_B.grad
    s, a = alpha / 2, layer.lora_A.detach()
    wanted = -1e-3 / alpha**2 * s**2 * gradient @ a.T @ a
    torch.testing.assert_close(layer.delta(), wanted, rtol=1e-4, atol=1e-8)
    assert layer.lora_A.grad is None
