"""FedSA-LoRA: A is everybody's, B and the head are each client's own."""

from __future__ import annotations

import pytest
import torch
from promises import Setup, play, same
from small_federation import small
from stand_ins import cast, layers_of, run

from fedquilt.core.types import Order
from fedquilt.methods.fedsa_lora import fedsa_lora
from fedquilt.methods.local_only import local_only


def setup_of(scene, **settings) -> Setup:
    return Setup(fedsa_lora(scene.federation, **settings), scene.federation.profiles, scene.clients)


def names_of(scene, factor):
    return {name for name in scene.layout.depth if name.endswith(factor)}


@pytest.mark.parametrize("local_head", [True, False])
def test_t26_a_alone_travels_and_b_and_the_head_stay(local_head):
    """T26: the upload's keys, both ways; every client holds its own B."""
    scene = small(budgets=(4, 4, 4))
    setup, seen = setup_of(scene, local_head=local_head), []
    fit = setup.method.exchanges[0]

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        seen.append((order.params.keys(), reply.params.keys(), fit.expects(order).keys()))
        return reply, memory

    watched = setup.method._replace(exchanges=(fit._replace(work=work),))
    played = play(setup._replace(method=watched), num_rounds=2)
    shared = names_of(scene, "lora_A") | (set() if local_head else scene.layout.head)
    assert len(seen) == 6
    assert all(keys == shared for three in seen for keys in three)
    kept = names_of(scene, "lora_B") | (scene.layout.head if local_head else set())
    own = [played.memories[k]["params"] for k in range(3)]
    assert all(params.keys() == kept for params in own)
    assert all(not torch.equal(own[0][name], own[1][name]) for name in kept)


def test_t26_after_a_round_all_have_one_a_and_each_its_own_b():
    """T26: what a client would use now."""
    scene = small(budgets=(4, 4, 4))
    setup = setup_of(scene)
    played = play(setup, num_rounds=2)
    used = [
        scene.clients[p.id].params(setup.method.view(played.states[-1], p), played.memories[p.id])
        for p in setup.profiles
    ]
    for name in names_of(scene, "lora_A"):
        assert all(torch.equal(one[name], used[0][name]) for one in used)
        assert torch.equal(used[0][name], played.states[-1]["params"][name])
    for name in names_of(scene, "lora_B"):
        assert not torch.equal(used[0][name], used[1][name])
        assert torch.equal(
            played.states[-1]["params"][name], played.states[0]["params"][name]
        )  # the server never saw it


def test_t26_a_client_that_sits_out_keeps_its_b():
    """T26: to the bit; its next round starts from it."""
    scene = small(budgets=(4, 4, 4))
    setup = setup_of(scene)
    one = play(setup, num_rounds=1)
    some = [p for p in setup.profiles if p.id != 1]
    two = play(setup, num_rounds=2, start=1, state=one.states[-1], memories=one.memories, cohort=lambda number: some)
    assert same(two.memories[1], one.memories[1])
    assert not same(two.memories[0], one.memories[0])


def test_t26_with_one_client_it_is_local_training():
    """T26: K = 1; the same steps as without any federation."""
    ends = []
    for factory in (fedsa_lora, local_only):
        scene = small(budgets=(4,), sizes=(6,))
        start = dict(scene.clients[0].initial)
        method = factory(scene.federation)
        played = play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=2, state={"params": start})
        view: Order = method.view(played.states[-1], scene.federation.profiles[0])
        ends.append(scene.clients[0].params(view, played.memories[0]))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-6, atol=1e-7)


def test_everybody_trains_the_layers_that_the_poorest_affords():
    scene = cast()
    (done,) = run(fedsa_lora(scene.federation, shape="uniform"), scene, num_rounds=1)
    assert layers_of(done) == dict.fromkeys(range(3), (0, 2, 4, 6, 8, 10))
