"""FedRA: random layers, in a model made of them alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from promises import Setup, play, same
from small_federation import LLAMA, VIT, small
from stand_ins import cast, layers_of, run
from torch import nn

from fedquilt.core.rng import Rng
from fedquilt.core.types import Order, Turn
from fedquilt.methods.fedra import fedra
from fedquilt.methods.full import full


def setup_of(scene, **settings) -> Setup:
    return Setup(fedra(scene.federation, **settings), scene.federation.profiles, scene.clients)


def test_every_client_draws_as_many_distinct_layers_as_it_affords_anew_each_round():
    scene = cast(rounds=40)
    sets = [layers_of(done) for done in run(fedra(scene.federation, drop_layers=False), scene)]
    assert all({k: len(set(layers)) for k, layers in one.items()} == {0: 6, 1: 9, 2: 12} for one in sets)
    assert all(list(layers) == sorted(layers) for one in sets for layers in one.values())
    assert len({one[0] for one in sets}) > 35


def test_a_layers_chance_is_budget_over_depth():
    scene = cast(num_layers=6, budgets=(2, 3), sizes=(1, 1), rounds=1500)
    times = {k: Counter() for k in range(2)}
    method = fedra(scene.federation, drop_layers=False)
    state = method.init(None)
    for number in range(1500):
        orders = method.exchanges[0].ask(state, Turn(number, scene.federation.profiles, Rng(1).child("round", number)))
        for k, order in orders.items():
            times[k].update(order.settings["layers"])
    for k, chance in ((0, 2 / 6), (1, 3 / 6)):
        assert all(abs(times[k][layer] / 1500 - chance) < 0.06 for layer in range(6))


def test_coverage_gives_every_layer_a_client():
    for coverage, expected in ((True, {12}), (False, None)):
        scene = cast(budgets=(6, 6), sizes=(1, 1), rounds=30)
        done = run(fedra(scene.federation, drop_layers=False, coverage=coverage), scene)
        covered = {len(set().union(*layers_of(one).values())) for one in done}
        assert covered == expected if coverage else len(covered) > 1


@pytest.mark.parametrize("model", [VIT, LLAMA])
def test_t27_only_the_drawn_blocks_run_in_their_order_and_bear_their_own_numbers(model):
    """T27: local index -> block -> local index, and only the drawn blocks' tensors travel, either way."""
    scene = small(model, budgets=(1, 2, 3))
    ran, seen = [], []
    blocks = scene.bench.model.get_submodule(scene.bench.blocks.path)
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_args, index=index: ran.append(index))
    setup = setup_of(scene)
    fit = setup.method.exchanges[0]

    def work(client, order, memory):
        ran.clear()
        reply, memory = fit.work(client, order, memory)
        layers = order.settings["layers"]
        assert ran == layers * 2  # two steps
        names = {*scene.layout.names(layers), *scene.layout.head}
        assert order.params.keys() == reply.params.keys() == names
        start = client.params(order)
        # every block's own tensors moved: those of local block i are the original block's, not block i's
        moved = {scene.layout.depth[n] for n, t in reply.params.items() if not torch.equal(t, start[n])}
        assert moved - {None} == set(layers)
        seen.append(tuple(layers))
        return reply, memory

    play(setup._replace(method=setup.method._replace(exchanges=(fit._replace(work=work),))), num_rounds=4)
    assert len(seen) == 12
    assert any(layers != tuple(range(len(layers))) for layers in seen)
    assert list(scene.bench.model.get_submodule(scene.bench.blocks.path)) == list(blocks)


def test_t27_the_shallow_model_computes_what_the_drawn_blocks_alone_would():
    """T27: training on blocks 1 and 3 equals training a model from which the others were taken out for good."""
    scene, other = small(dropout=0.0), small(dropout=0.0)
    order = Order({}, rng=Rng(8))
    mine = scene.clients[2].fit(order, None, [1, 3], blocks=[1, 3])
    model = other.bench.model
    parent = model.get_submodule("vit")
    parent.layers = nn.ModuleList([parent.layers[1], parent.layers[3]])
    theirs = other.clients[2].fit(order, None, [1, 3])
    assert same(mine.params, theirs.params)
    assert mine.metrics == theirs.metrics


def test_only_the_drawn_blocks_and_the_head_are_counted_as_traffic():
    scene = small()
    played = play(setup_of(scene), num_rounds=2)
    nbytes = {name: 4 * torch.Size(shape).numel() for name, shape in scene.layout.shapes.items()}
    for (traffic,) in played.traffic:
        for client, settings in traffic.settings.items():
            names = {*scene.layout.names(settings["layers"]), *scene.layout.head}
            size = sum(nbytes[name] for name in names)
            assert traffic.bytes_down[client] == traffic.bytes_up[client] == size


def test_without_dropping_the_same_layers_are_drawn_and_the_whole_model_is_run_and_sent():
    scene, other = small(), small()
    dropped, kept = play(setup_of(scene)), play(setup_of(other, drop_layers=False))
    for (one,), (two,) in zip(dropped.traffic, kept.traffic, strict=True):
        assert one.settings == two.settings
        assert one.bytes_up == two.bytes_up
        assert all(one.bytes_down[k] < two.bytes_down[k] for k in (0, 1))
        assert one.bytes_down[2] == two.bytes_down[2]  # the client that affords everything
    assert not same(dropped.states[-1], kept.states[-1])


@pytest.mark.parametrize("drop_layers", [True, False])
def test_where_everyone_affords_everything_fedra_is_federated_averaging(drop_layers):
    scene, other = small(budgets=(4, 4, 4)), small(budgets=(4, 4, 4))
    mine = play(setup_of(scene, drop_layers=drop_layers))
    plain = play(Setup(full(other.federation), other.federation.profiles, other.clients))
    assert same(mine.states, plain.states)


def test_the_view_is_the_whole_model():
    scene = small()
    setup = setup_of(scene)
    state = play(setup, num_rounds=1).states[-1]
    assert setup.method.view(state, setup.profiles[0]).params.keys() == scene.layout.depth.keys()
