"""The trunk of the layer-allocation methods: what is asked, what comes back, and how it is averaged."""

from __future__ import annotations

import pytest
import torch
from promises import Setup, play, same
from small_federation import small
from stand_ins import cast, layers_of, run

from fedquilt.aggregate.lowrank.rules import residual_rule, stack_rule
from fedquilt.core.errors import ConfigError
from fedquilt.core.types import Reply
from fedquilt.methods.layered import layered

CHOSEN = {0: (0,), 1: (0, 2), 2: (1, 2)}  # of four layers; nobody trains layer 3


def chosen(state, turn):
    return {profile.id: CHOSEN[profile.id] for profile in turn.cohort}


def test_everybody_receives_everything_and_sends_back_what_it_trained():
    """T13, the upload: tensors of untrained layers are absent from it."""
    scene = small()
    method = layered("toy", scene.federation, chosen)
    played = play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=1)
    (traffic,) = played.traffic[0]
    nbytes = {name: 4 * torch.Size(shape).numel() for name, shape in scene.layout.shapes.items()}
    assert traffic.bytes_down == dict.fromkeys(range(3), sum(nbytes.values()))
    for client, layers in CHOSEN.items():
        names = {*scene.layout.names(layers), *scene.layout.head}
        assert traffic.bytes_up[client] == sum(nbytes[name] for name in names)
        assert traffic.settings[client] == {"layers": list(layers)}
    before, after = (state["params"] for state in played.states)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {*scene.layout.names([0, 1, 2]), *scene.layout.head}
    # after one round from B = 0 and two steps each, every trained tensor has moved
    assert moved == trained


@pytest.mark.parametrize(("weighting", "weights"), [("examples", (10, 20, 30)), ("uniform", (1, 1, 1))])
def test_each_layer_is_the_mean_over_those_who_trained_it(weighting, weights):
    scene = cast(num_layers=4, budgets=(1, 2, 2))
    method = layered("toy", scene.federation, chosen, weighting=weighting)
    state = method.init(None)
    values = {0: 1.0, 1: 5.0, 2: 9.0}
    where = scene.federation.layout
    replies = [
        Reply(k, {n: torch.full((2,), v) for n in (*where.names(CHOSEN[k]), *where.head)}, (10, 20, 30)[k])
        for k, v in values.items()
    ]
    after = method.exchanges[0].merge(state, iter(replies))["params"]
    for layer in (0, 1, 2, None):
        holders = [k for k in values if layer is None or layer in CHOSEN[k]]
        mean = sum(weights[k] * values[k] for k in holders) / sum(weights[k] for k in holders)
        for name in where.depth:
            if where.depth[name] == layer:
                torch.testing.assert_close(after[name], torch.full((2,), mean), rtol=1e-6, atol=0)
    assert all(after[name] is state["params"][name] for name in where.names([3]))


def test_clients_that_the_allocation_leaves_out_sit_out():
    scene = cast()
    method = layered("toy", scene.federation, lambda state, turn: {1: (0,)})
    done = run(method, scene, num_rounds=2)
    assert [layers_of(one) for one in done] == [{1: (0,)}] * 2
    assert scene.clients[0].fits == scene.clients[2].fits == []
    assert scene.clients[1].fits == [(0, (0,)), (1, (0,))]


def test_a_round_that_asks_nobody_leaves_the_state():
    scene = cast()
    first, second = run(layered("toy", scene.federation, lambda state, turn: {}), scene, num_rounds=2)
    assert first.state is second.state
    assert first.traffic[0].bytes_down == {}


def test_the_view_is_all_the_server_holds():
    scene = cast()
    method = layered("toy", scene.federation, chosen)
    state = method.init(None)
    view = method.view(state, scene.federation.profiles[0])
    assert same(view.params, state["params"])
    assert view.params.keys() == scene.federation.layout.depth.keys()


def test_two_architectures_are_too_many():
    scene = cast()
    federation = scene.federation
    two = federation.__class__(
        federation.profiles, {"a": federation.layout, "b": federation.layout}, federation.initial, 3
    )
    with pytest.raises(ValueError, match="too many values"):
        layered("toy", two, chosen)


def nan_pixels(client):
    columns = dict(client.train)
    columns["pixel_values"] = columns["pixel_values"].float().fill_(float("nan"))
    return client.__class__(**{**vars(client), "train": columns})


def test_t31_a_client_whose_loss_is_nan_is_dropped_and_named_and_the_round_goes_on_without_it():
    """T31"""
    scene = small()
    method = layered("toy", scene.federation, chosen)
    clients = {**scene.clients, 1: nan_pixels(scene.clients[1])}
    played = play(Setup(method, scene.federation.profiles, clients), num_rounds=2)
    for (traffic,) in played.traffic:
        assert traffic.dropped == {1: "loss is nan at step 1"}
        assert sorted(traffic.bytes_up) == sorted(traffic.metrics) == [0, 2]
    away = play(
        Setup(method, scene.federation.profiles, scene.clients), num_rounds=2, away=lambda client, *_: client == 1
    )
    assert same(played.states, away.states)


def test_t31_a_client_whose_gradient_is_not_finite_is_dropped_by_its_tensors():
    """T31: with one step the loss is finite, and the update is what shows it."""
    training = small().clients[0].training.__class__(steps=1, epochs=None, batch_size=8, optimizer="sgd")
    scene = small(training=training)
    method = layered("toy", scene.federation, chosen)
    spoil = {"now": False}

    def infinite(_module, grads):
        return (grads[0] * float("inf"),) if spoil["now"] else None

    scene.bench.model.get_submodule("classifier").register_full_backward_pre_hook(infinite)
    fit = method.exchanges[0]

    def work(client, order, memory):
        spoil["now"] = client.id == 2
        return fit.work(client, order, memory)

    broken = method._replace(exchanges=(fit._replace(work=work),))
    played = play(Setup(broken, scene.federation.profiles, scene.clients), num_rounds=1)
    ((traffic,),) = played.traffic
    assert set(traffic.dropped) == {2}
    assert traffic.dropped[2].startswith("tensor '")
    assert traffic.dropped[2].endswith("' is not finite")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in played.states[-1]["params"].values())


def test_a_factor_that_rests_is_neither_trained_nor_sent_nor_expected():
    scene = small()
    policy = {0: ("lora_B",), 1: ("lora_A",), 2: ("lora_A", "lora_B")}
    method = layered("toy", scene.federation, chosen, factors=lambda number: policy[number])
    fit, seen = method.exchanges[0], []

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        assert fit.expects(order).keys() == reply.params.keys()
        assert order.params.keys() == scene.layout.depth.keys()
        seen.append((order.round, client.id, reply.params.keys()))
        return reply, memory

    watched = method._replace(exchanges=(fit._replace(work=work),))
    play(Setup(watched, scene.federation.profiles, scene.clients), num_rounds=3)
    assert len(seen) == 9
    for number, client, names in seen:
        inside = {name for name in scene.layout.names(CHOSEN[client]) if name.endswith(policy[number])}
        assert names == inside | scene.layout.head


@pytest.mark.parametrize(("rule", "by"), [(None, "the mean of factors"), (residual_rule(), "'fedex-lora'")])
def test_clients_of_unlike_rank_are_refused_where_the_rule_takes_one(rule, by):
    scene = small(rank=4, ranks=(2, 4, 3), rule=rule)
    with pytest.raises(ConfigError) as caught:
        layered("toy", scene.federation, chosen)
    assert str(caught.value) == (
        f"clients.ranks holds 2, 3 and the server's adapters have rank 4: {by} needs one rank; leave clients.ranks "
        "out, or set method.name or aggregation.rule to 'flexlora', 'hetlora' or 'flora'"
    )


def test_ranks_that_are_all_the_servers_are_one_rank():
    scene = small(rank=4, ranks=(4, 4, 4))
    assert layered("toy", scene.federation, chosen).name == "toy"


def test_the_federations_rule_combines_what_the_allocation_chose():
    """Each layer over those who trained it; a layer that nobody trained keeps its base and its factors."""
    scene = small(rule=stack_rule())
    method = layered("toy", scene.federation, chosen)
    played = play(Setup(method, scene.federation.profiles, scene.clients), num_rounds=2)
    changed = {scene.layout.depth[f"{module}.lora_A"] for module in played.states[-1]["base"]["shift"]}
    assert changed == {0, 1, 2}
    first, last = (state["params"] for state in (played.states[0], played.states[-1]))
    assert {name for name in first if not same(first[name], last[name])} == scene.layout.head
