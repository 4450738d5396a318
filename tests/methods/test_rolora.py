"""RoLoRA: one factor a round, B first, and the mean of products exact in all of them."""

from __future__ import annotations

import torch
from promises import Setup, play, same
from small_federation import small
from stand_ins import cast, layers_of, run

from fedquilt.client import Training
from fedquilt.methods.fedit import fedit
from fedquilt.methods.rolora import rolora


def setup_of(scene) -> Setup:
    return Setup(rolora(scene.federation), scene.federation.profiles, scene.clients)


def names_of(scene, factor):
    return {name for name in scene.layout.depth if name.endswith(factor)}


def test_exactly_one_factor_changes_in_a_round_and_b_is_first():
    scene = small(budgets=(4, 4, 4))
    played = play(setup_of(scene), num_rounds=4)
    for number, (before, after) in enumerate(zip(played.states, played.states[1:], strict=False)):
        before, after = before["params"], after["params"]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == names_of(scene, "lora_A" if number % 2 else "lora_B") | scene.layout.head


def test_a_client_gets_both_factors_and_sends_the_trained_one():
    scene = small(budgets=(2, 4, 4))
    played = play(setup_of(scene), num_rounds=2)
    nbytes = {name: 4 * torch.Size(shape).numel() for name, shape in scene.layout.shapes.items()}
    mine = {*scene.layout.names([2, 3])}
    for number, (traffic,) in enumerate(played.traffic):
        factor = "lora_A" if number % 2 else "lora_B"
        up = (mine & names_of(scene, factor)) | scene.layout.head
        assert traffic.bytes_down == dict.fromkeys(range(3), sum(nbytes.values()))
        assert traffic.bytes_up == dict.fromkeys(range(3), sum(nbytes[name] for name in up))
        assert traffic.settings[0]["factors"] == [factor]


def test_t20_every_round_is_the_exact_mean_of_the_clients_products():
    """T20 for RoLoRA, in a round of B and in a round of A."""
    scene = small(budgets=(4, 4, 4))
    setup, sent = setup_of(scene), []
    fit = setup.method.exchanges[0]

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        sent.append((order, reply))
        return reply, memory

    watched = setup.method._replace(exchanges=(fit._replace(work=work),))
    states = play(setup._replace(method=watched), num_rounds=2).states
    for number in range(2):
        round_ = [(order, reply) for order, reply in sent if order.round == number]
        total = sum(reply.weight for _, reply in round_)
        after = states[number + 1]["params"]
        for a in names_of(scene, "lora_A"):
            b = a.replace("lora_A", "lora_B")
            own = [{**order.params, **reply.params} for order, reply in round_]
            dense = sum(
                reply.weight / total * used[b].double() @ used[a].double()
                for (_, reply), used in zip(round_, own, strict=True)
            )
            assert bool(dense.any())
            torch.testing.assert_close(after[b].double() @ after[a].double(), dense, rtol=1e-5, atol=1e-8)


def test_a_round_of_b_first_gives_what_fedit_gives_b_when_it_starts_at_zero_for_one_step():
    """At the start B is zero, so A has no gradient and one step of fedit moves B alone, by plain SGD."""
    plain = Training(steps=1, epochs=None, batch_size=4, learning_rate=0.05, optimizer="sgd")
    ends = []
    for factory in (rolora, fedit):
        scene = small(budgets=(4, 4, 4), training=plain)
        setup = Setup(factory(scene.federation), scene.federation.profiles, scene.clients)
        ends.append(play(setup, num_rounds=1).states[-1])
    assert same(*ends)


def test_parity_is_that_of_the_round_and_not_of_the_rounds_since_a_resume():
    scene = cast(num_layers=2, budgets=(2, 2), sizes=(1, 1))
    whole = run(rolora(scene.federation), scene, num_rounds=4)
    rest = run(rolora(scene.federation), scene, num_rounds=4, start=3, state=whole[2].state)
    assert rest[0].traffic[0].settings[0]["factors"] == ["lora_A"]
    assert same(rest[0].state, whole[3].state)
    after = whole[3].state["params"]
    assert after["m.layers.0.q_proj.lora_A"].tolist() == after["m.layers.0.q_proj.lora_B"].tolist() == [2.0, 2.0]


def test_everybody_trains_the_layers_that_the_poorest_affords():
    scene = cast()
    (done,) = run(rolora(scene.federation, shape="bottleneck"), scene, num_rounds=1)
    assert layers_of(done) == dict.fromkeys(range(3), (0, 1, 2, 9, 10, 11))
