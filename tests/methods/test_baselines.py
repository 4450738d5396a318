"""FedIT, full, straggler, exclusive and local-only: who trains what, and what travels."""

from __future__ import annotations

import pytest
import torch
from parties import apart_by_columns
from promises import Setup, play, same
from small_federation import anchored, mixtures, served, small
from stand_ins import cast, layers_of, run

from fedquilt.allocate.layers import gd_set
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order, Reply
from fedquilt.methods import METHODS, traits_of
from fedquilt.methods.exclusive import exclusive
from fedquilt.methods.fedit import fedit
from fedquilt.methods.full import full
from fedquilt.methods.local_only import local_only
from fedquilt.methods.straggler import straggler


@pytest.mark.parametrize("name", METHODS)
def test_a_method_bears_the_name_it_is_listed_under(name):
    traits = traits_of(name)
    if traits.vertical:
        assert apart_by_columns(name).method.name == name
        return
    scenes = {"mixture": mixtures, "anchored": anchored}
    scene = (
        served(name) if traits.needs_server else scenes.get(traits.needs, lambda: cast(server=lambda call: range(12)))()
    )
    assert METHODS[name](scene.federation).name == name


def setup_of(factory, scene, **settings) -> Setup:
    return Setup(factory(scene.federation, **settings), scene.federation.profiles, scene.clients)


# FedIT ------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ("inverted-triangle", (6, 7, 8, 9, 10, 11)),
        ("triangle", (0, 1, 2, 3, 4, 5)),
        ("bottleneck", (0, 1, 2, 9, 10, 11)),
        ("uniform", (0, 2, 4, 6, 8, 10)),
    ],
)
def test_fedit_gives_all_the_layers_of_the_lowest_budget(shape, layers):
    scene = cast()
    assert [layers_of(done) for done in run(fedit(scene.federation, shape=shape), scene, num_rounds=2)] == [
        dict.fromkeys(range(3), layers)
    ] * 2


def test_fedit_takes_the_lowest_budget_of_all_clients_not_of_the_cohort():
    scene = cast()
    rich = lambda number: scene.federation.profiles[1:]  # noqa: E731
    (done,) = run(fedit(scene.federation), scene, num_rounds=1, cohort=rich)
    assert layers_of(done) == dict.fromkeys((1, 2), (6, 7, 8, 9, 10, 11))


@pytest.mark.parametrize("common", ["lora_A", "lora_B"])
def test_t20_the_mean_of_factors_is_exact_where_one_factor_is_common(common):
    """T20: the merged product is the weighted mean of the clients' dense deltas; with neither common it is not."""
    scene = small(budgets=(4, 4, 4))
    method, where = fedit(scene.federation), scene.layout
    generator = torch.Generator().manual_seed(1)
    state = {"params": {n: torch.randn(s, generator=generator) for n, s in where.shapes.items()}}
    replies = []
    for profile in scene.federation.profiles:
        trained = {n: torch.randn(s, generator=generator) for n, s in where.shapes.items()}
        trained |= {n: state["params"][n] for n in trained if n.endswith(common)}
        replies.append(Reply(profile.id, trained, profile.num_examples))
    merged = method.exchanges[0].merge(state, iter(replies))["params"]
    modules = {name.removesuffix(".lora_A") for name in where.depth if name.endswith(".lora_A")}
    assert len(modules) == 8
    total = sum(reply.weight for reply in replies)
    scale = scene.bench.model.get_submodule(min(modules)).scaling
    for module in modules:
        dense = sum(
            (r.weight / total * scale * r.params[f"{module}.lora_B"].double() @ r.params[f"{module}.lora_A"].double())
            for r in replies
        )
        ours = scale * merged[f"{module}.lora_B"].double() @ merged[f"{module}.lora_A"].double()
        torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)
    # with neither factor common the product of means is another matrix
    loose = [
        Reply(r.client, {n: t + r.client * torch.ones_like(t) for n, t in r.params.items()}, r.weight) for r in replies
    ]
    merged = method.exchanges[0].merge(state, iter(loose))["params"]
    module = min(modules)
    dense = sum(r.weight / total * r.params[f"{module}.lora_B"] @ r.params[f"{module}.lora_A"] for r in loose)
    assert (merged[f"{module}.lora_B"] @ merged[f"{module}.lora_A"] - dense).abs().max() > 0.1


def test_t20_a_whole_round_with_the_factor_a_frozen_is_exact():
    """T20 through training: clients that train B alone, from a common A."""
    scene = small(budgets=(4, 4, 4), dropout=0.0)
    setup = setup_of(fedit, scene)
    sent: list[Reply] = []
    fit = setup.method.exchanges[0]

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        frozen = {n: order.params[n] if n.endswith("lora_A") else t for n, t in reply.params.items()}
        sent.append(Reply(reply.client, frozen, reply.weight, reply.metrics))
        return sent[-1], memory

    method = setup.method._replace(exchanges=(fit._replace(work=work),))
    after = play(setup._replace(method=method), num_rounds=1).states[-1]["params"]
    total = sum(reply.weight for reply in sent)
    modules = [name.removesuffix(".lora_A") for name in scene.layout.depth if name.endswith(".lora_A")]
    for module in modules:
        a, b = f"{module}.lora_A", f"{module}.lora_B"
        dense = sum(r.weight / total * r.params[b].double() @ r.params[a].double() for r in sent)
        assert bool(dense.any())
        torch.testing.assert_close(after[b].double() @ after[a].double(), dense, rtol=1e-5, atol=1e-8)


# Full and straggler ------------------------------------------------------------


def test_full_has_everybody_train_everything_whatever_its_budget():
    scene = cast()
    (done,) = run(full(scene.federation), scene, num_rounds=1)
    assert layers_of(done) == dict.fromkeys(range(3), tuple(range(12)))


def test_straggler_has_everybody_train_the_lowest_budget_evenly_spaced():
    scene = cast()
    (done,) = run(straggler(scene.federation), scene, num_rounds=1)
    assert layers_of(done) == dict.fromkeys(range(3), (0, 2, 4, 6, 8, 10))


def test_with_one_budget_of_all_layers_fedit_full_straggler_and_exclusive_are_one_method():
    ends = []
    for factory in (full, fedit, straggler, exclusive):
        scene = small(budgets=(4, 4, 4))
        ends.append(play(setup_of(factory, scene), num_rounds=2).states[-1])
    assert all(same(end, ends[0]) for end in ends[1:])


# Exclusive ------------------------------------------------------------


def test_exclusive_asks_only_those_who_afford_the_whole_model():
    scene = cast(budgets=(6, 12, 11, 12), sizes=(1, 1, 1, 1))
    (done,) = run(exclusive(scene.federation), scene, num_rounds=1)
    assert layers_of(done) == dict.fromkeys((1, 3), tuple(range(12)))


def test_exclusive_goes_on_over_a_round_without_an_eligible_client():
    scene = cast()
    everyone = scene.federation.profiles
    done = run(
        exclusive(scene.federation),
        scene,
        num_rounds=3,
        cohort=lambda number: everyone[:2] if number == 1 else everyone,
    )
    assert [sorted(one.traffic[0].bytes_up) for one in done] == [[2], [], [2]]
    assert done[1].state is done[0].state
    assert done[1].traffic[0].dropped == {}
    assert not same(done[2].state, done[1].state)


def test_exclusive_is_refused_where_nobody_is_eligible():
    with pytest.raises(ConfigError, match="'exclusive' needs a client that affords all 12 layers") as caught:
        exclusive(cast(budgets=(6, 9, 11)).federation)
    assert "clients.budgets" in str(caught.value)


# Local only ------------------------------------------------------------


def test_local_only_sends_no_tensor_either_way_and_every_client_learns_by_itself():
    scene = small()
    setup = setup_of(local_only, scene)
    played = play(setup, num_rounds=2)
    for (traffic,) in played.traffic:
        assert traffic.bytes_down == traffic.bytes_up == {0: 0, 1: 0, 2: 0}
        assert {k: s["layers"] for k, s in traffic.settings.items()} == {0: [3], 1: [2, 3], 2: [0, 1, 2, 3]}
    assert same(*(state["params"] for state in (played.states[0], played.states[-1])))
    for client, layers in {0: [3], 1: [2, 3], 2: [0, 1, 2, 3]}.items():
        own = played.memories[client]["params"]
        assert own.keys() == {*scene.layout.names(layers), *scene.layout.head}
        view = setup.method.view(played.states[-1], scene.federation.profiles[client])
        assert view.params == {}
        used = scene.clients[client].params(view, played.memories[client])
        assert all(used[name] is (own[name] if name in own else scene.clients[client].initial[name]) for name in used)


@pytest.mark.parametrize("ranks", [None, (2, 4, 3)])
def test_local_only_is_each_client_training_on_without_a_server(ranks):
    """Also with ranks of their own, since nothing is combined."""
    given = {"rank": 4, "ranks": ranks}
    scene = small(**given)
    played = play(setup_of(local_only, scene), num_rounds=2)
    alone = {k: {} for k in scene.clients}
    fresh = small(**given)
    for k, rank in enumerate(ranks or ()):
        assert {len(own) for name, own in played.memories[k]["params"].items() if name.endswith("lora_A")} == {rank}
    for number in range(2):
        for k, client in fresh.clients.items():
            rng = played_rng(number, k)
            layers = range(4 - client.profile.budget.layers, 4)
            fitted = client.fit(Order({}, round=number, rng=rng), {"params": alone[k]}, layers)
            alone[k] = {**alone[k], **fitted.params}
    for k, own in alone.items():
        assert same(played.memories[k]["params"], own)


def played_rng(number, client):
    return Rng(5).child("round", number).child("client", client, "fit").sealed()


@pytest.mark.parametrize("shape", ["triangle", "inverted-triangle", "bottleneck", "uniform"])
def test_local_only_follows_the_shape(shape):
    scene = cast()
    (done,) = run(local_only(scene.federation, shape=shape), scene, num_rounds=1)
    assert layers_of(done) == {k: gd_set(shape, 12, budget) for k, budget in enumerate((6, 9, 12))}


def test_an_unknown_shape_is_refused_with_the_shapes_there_are():
    for factory in (fedit, local_only):
        scene = cast()
        with pytest.raises(ConfigError, match="did you mean 'bottleneck'"):
            run(factory(scene.federation, shape="botleneck"), scene, num_rounds=1)
