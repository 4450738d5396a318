"""H2Tune in common coordinates: cores travel and are averaged, all else stays, and each phase trains its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from promises import Setup, play, same
from small_federation import LLAMA, VIT, WIDE, common, several

from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.axes_exchange import with_axes
from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.client import Training
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.params import without
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply, Turn
from fedquilt.core.worker import Phase
from fedquilt.core.wrap import with_local
from fedquilt.methods.h2tune import h2tune

TRAINING = Training(steps=5, epochs=None, batch_size=4, learning_rate=0.05)
WIDER_LLAMA = "tiny:llama?layers=2&width=16"
WRITERS = (LLAMA, WIDER_LLAMA)
HEAD = "common.head-e3b0c442.0"


def scene(models=(VIT, WIDE), *, private_rank=2, training=TRAINING, budgets=(1, 3), local_head=False, **settings):
    made = common(models, training=training, private_rank=private_rank, budgets=budgets)
    method = h2tune(made.federation, ends="common", **settings)
    method = with_local(method, {HEAD}) if local_head else method
    return Setup(with_axes(method, made.federation, 3), made.federation.profiles, made.clients).bound()


def watched(setup):
    """The setup, and a list in which every order and reply of its training is put down."""
    bases, fit = setup.method.exchanges
    seen = []

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        seen.append((order, reply))
        return reply, memory

    return setup._replace(method=setup.method._replace(exchanges=(bases, fit._replace(work=work)))), seen


def spied(setup, id):
    """The setup, and a list of the phases in which this client is asked to train."""
    client, asked = setup.clients[id], []

    class Watching:
        def __getattr__(self, name):
            return getattr(client, name)

        def alternate(self, order, memory, phases, **more):
            asked.append(phases)
            return client.alternate(order, memory, phases, **more)

    return setup._replace(clients={**setup.clients, id: Watching()}), asked


# What travels and what stays ------------------------------------------------------------


def test_cores_and_heads_travel_and_nothing_else() -> None:
    setup, seen = watched(scene())
    memories = play(setup).memories
    for order, reply in seen:
        own = {name for name in reply.params if not name.startswith("seen.")}
        assert all(map(is_shared, own))
        assert own <= order.params.keys()
        assert HEAD in own
        assert order.settings.keys() <= {"layers", "architecture", "speaks"}
    for id, memory in memories.items():
        layout = setup.clients[id].bench.layout
        layers = range(layout.num_layers - min(layout.num_layers, setup.clients[id].profile.budget.layers), 9)
        private = {name for name in layout.names(layers) if not is_shared(name)}
        assert private
        assert {name for name in memory["params"] if not name.startswith("point.")} == private


def test_no_message_has_a_dimension_of_a_models_width() -> None:
    setup, seen = watched(scene())
    play(setup, num_rounds=1)
    for order, reply in seen:
        shapes = {tensor.shape for name, tensor in {**order.params, **reply.params}.items() if "point" not in name}
        assert not {8, 16} & {size for shape in shapes for size in shape}


def test_a_head_that_stays_is_trained_in_the_private_phase_and_is_each_clients_own() -> None:
    setup, asked = spied(scene(local_head=True, joint_rounds=0), 0)
    setup, seen = watched(setup)
    played = play(setup)
    assert not any(HEAD in {**order.params, **reply.params} for order, reply in seen)
    assert not played.states[-1]["params"][HEAD].any()
    heads = [memory["params"][HEAD] for memory in played.memories.values()]
    assert not any(torch.equal(one, other) for one, other in pairwise(heads))
    (shared, private), *_ = asked
    assert HEAD in private.names - shared.names


# The algorithm ------------------------------------------------------------


def test_the_server_steps_towards_the_mean_of_those_that_trained_a_core() -> None:
    """Worked by hand: 4 + 0.5 ((3 x 6 + 1 x 2) / 4 - 4) = 4.5, and where only one trained, 4 + 0.5 (2 - 4) = 3."""
    made = common((VIT, WIDE))
    (fit,) = h2tune(made.federation, ends="common", server_rate=0.5).exchanges
    both, alone, nobody = (f"common.attention.{slot}" for slot in (2, 1, 0))
    state = {"params": {name: torch.full((3, 3), 4.0) for name in (both, alone, nobody)}}
    replies = [
        Reply(0, {both: torch.full((3, 3), 6.0)}, 3.0),
        Reply(2, {both: torch.full((3, 3), 2.0), alone: torch.full((3, 3), 2.0)}, 1.0),
    ]
    after = fit.merge(state, iter(replies))["params"]
    assert torch.equal(after[both], torch.full((3, 3), 4.5))
    assert torch.equal(after[alone], torch.full((3, 3), 3.0))
    assert after[nobody] is state["params"][nobody]


def test_at_rate_one_the_server_has_the_layer_wise_mean_to_the_bit() -> None:
    setup, seen = watched(scene())
    played = play(setup, num_rounds=2)
    replies = [reply for _, reply in seen[len(setup.clients) :]]
    assert same(played.states[2]["params"], layerwise_mean(played.states[1]["params"], iter(replies)))


def test_everything_at_once_in_the_first_rounds_each_at_its_rate_then_in_turns() -> None:
    wanted = {"shared_steps": 2, "private_steps": 3, "agreement": 0.7, "temperature": 2.0, "shared_rate": 3.0}
    setup, asked = spied(scene(joint_rounds=2, **wanted), 0)
    play(setup)
    layout = setup.clients[0].bench.layout
    trained = {*layout.names([3]), *layout.head}  # a budget of one block is the last one
    shared = {name for name in trained if is_shared(name)}
    assert [len(phases) for phases in asked] == [1, 1, 2]
    (joint,) = asked[0]
    assert joint.names == trained
    assert {name for name, rate in joint.rates.items() if rate == 3.0} == shared
    assert {name for name, rate in joint.rates.items() if rate == 1.0} == trained - shared
    first, second = asked[2]
    assert (first.names, first.steps, first.rate, first.agreement) == (shared, 2, 3.0, 0.0)
    assert (second.names, second.steps, second.rate, second.agreement) == (trained - shared, 3, 1.0, 0.7)
    assert second.temperature == 2.0
    assert (len(joint.penalties), len(first.penalties), len(second.penalties)) == (1, 1, 0)


def test_the_anchor_is_half_the_mean_square_of_the_drift() -> None:
    """Worked by hand: cores of 3 x 3 that moved by 1 and by 3 cost 2 (1 / 2 + 9 / 2) / 2 = 5; the private LoRA none."""
    setup, asked = spied(scene(anchor=2.0, local_head=True), 1)
    play(setup, num_rounds=1)
    (joint,), (penalty,) = asked[0], asked[0][0].penalties
    start = {name: torch.zeros(setup.clients[1].bench.layout.shapes[name]) for name in joint.names}
    cores = sorted(filter(is_shared, joint.names - {HEAD}))
    now = {name: torch.full_like(tensor, 7.0) for name, tensor in start.items()}
    now |= {name: torch.full((3, 3), 1.0 + 2.0 * (number % 2)) for number, name in enumerate(cores)}
    assert len(cores) % 2 == 0
    assert float(penalty(now, start)) == pytest.approx(5.0)


def test_with_the_cores_alone_there_is_one_phase_and_no_tensor_of_a_clients_own() -> None:
    setup, asked = spied(scene(WRITERS, private_rank=0, budgets=(2, 2)), 0)
    played = play(setup)
    assert [len(phases) for phases in asked] == [1, 1, 1]
    assert all(map(is_shared, asked[2][0].names))
    assert any(bool(core.any()) for core in played.states[-1]["params"].values())
    for memory in played.memories.values():
        assert all(name.startswith("point.") for name in memory["params"])


# Laws ------------------------------------------------------------


def test_before_anything_is_learned_a_client_answers_as_its_base_to_the_bit() -> None:
    setup = scene()
    played = play(setup, num_rounds=1)
    client, points = setup.clients[0], played.memories[0]["params"]
    nothing = setup.method.view(played.states[0], client.profile)
    found = {name: tensor for name, tensor in points.items() if name.startswith("point.")}
    client.bench.load(client.params(replace(nothing, params={**nothing.params, **found}), {}))
    inputs = client.bench.prepare(dict(client.splits["test"]))
    with torch.no_grad():
        adapted = client.bench.model(**inputs).logits
        with client.bench.public.adapters.taken_out(client.bench.model):
            assert torch.equal(client.bench.model(**inputs).logits, adapted)


def test_clients_that_change_places_change_nothing_but_whose_is_what() -> None:
    whole = replace(TRAINING, batch_size=50, steps=2)  # every step has all rows, whose order then does not matter
    setup = scene(training=whole, budgets=(3, 3))
    swapped = {0: 1, 1: 0, 2: 2, 3: 3}
    profiles = {swapped[id]: replace(client.profile, id=swapped[id]) for id, client in setup.clients.items()}
    clients = {new: replace(setup.clients[old], profile=profiles[new]) for old, new in swapped.items()}
    other = setup._replace(profiles=tuple(profiles[id] for id in sorted(profiles)), clients=clients)
    one, two = play(setup), play(other)
    for name, core in one.states[-1]["params"].items():
        torch.testing.assert_close(two.states[-1]["params"][name], core, rtol=1e-3, atol=1e-4)
    for old, new in swapped.items():
        for name, tensor in one.memories[old]["params"].items():
            torch.testing.assert_close(two.memories[new]["params"][name], tensor, rtol=1e-3, atol=1e-4)


def test_an_absent_architecture_changes_only_the_mean() -> None:
    setup, seen = watched(scene())
    played = play(setup, num_rounds=1)
    state, (_, fit) = played.states[-1], setup.method.exchanges
    present = tuple(profile for profile in setup.profiles if profile.id < 2)
    orders, all_orders = (fit.ask(state, Turn(1, cohort, Rng(1))) for cohort in (present, setup.profiles))
    assert all(same(orders[id].params, all_orders[id].params) for id in orders)
    seen.clear()
    again = play(setup, state=state, start=1, num_rounds=2, memories=played.memories, cohort=lambda number: present)
    replies = [reply for _, reply in seen]
    assert [reply.client for reply in replies] == [0, 1]
    assert same(again.states[-1]["params"], layerwise_mean(state["params"], iter(replies)))


# What is refused ------------------------------------------------------------


def test_adapters_that_are_not_in_common_coordinates_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.ends = 'common': the adapters of .* are not in common coord"):
        h2tune(several((VIT, WIDE)).federation, ends="common")


def test_cores_of_unlike_ranks_are_refused() -> None:
    three, four = (common((model,), rank=rank).federation for model, rank in ((VIT, 3), (WIDE, 4)))
    both = replace(three, layouts={**three.layouts, **four.layouts})
    with pytest.raises(ModelError, match=r"must have the same adapter\.rank"):
        h2tune(both, ends="common")


# Ends of a client's own ------------------------------------------------------------


def ends_in(params):
    return {name: tensor for name, tensor in params.items() if name.endswith((".encoder", ".decoder"))}


def test_after_some_rounds_each_client_trains_ends_of_its_own_from_the_axes_and_keeps_them() -> None:
    setup, seen = watched(scene(free_after=2, joint_rounds=0))
    played = play(setup)
    assert not any(ends_in({**order.params, **reply.params}) for order, reply in seen)
    assert not any(ends_in(memory["params"]) for memory in played.kept[2].values())
    for id, memory in played.memories.items():
        bench, own = setup.clients[id].bench, memory["params"]
        depth, budget = bench.layout.num_layers, setup.profiles[id].budget.layers
        trained = range(depth - min(budget, depth), depth)
        assert ends_in(own).keys() == bench.ends(trained) != frozenset()
        bench.public.place({name: tensor for name, tensor in own.items() if name.startswith("point.")})
        for name, tensor in ends_in(own).items():
            module, _, end = name.rpartition(".")
            axis = bench.public.adapters.linears[module].get_buffer(end)
            assert not torch.equal(tensor, axis)
            assert float((tensor - axis).abs().max()) < 0.25  # four steps of AdamW at 0.05


def test_ends_of_one_client_are_not_those_of_the_next_one_in_the_same_model() -> None:
    setup = scene(free_after=0)
    played = play(setup)
    state = played.states[-1]
    views = {id: setup.method.view(state, setup.profiles[id]) for id in (0, 1)}
    own = played.memories[0]["params"]
    frozen = {"params": without(own, ends_in(own))}
    alone = scene(free_after=0).clients[0].evaluate(views[0], frozen)
    setup.clients[1].evaluate(views[1], played.memories[1])
    assert setup.clients[0].evaluate(views[0], frozen) == alone
    assert setup.clients[0].evaluate(views[0], played.memories[0]) != alone


def test_a_step_on_the_ends_is_a_step_along_their_gradient() -> None:
    """SGD of rate 1 over one batch of all rows: the change is minus the gradient that autograd finds from outside."""
    step = Training(steps=1, epochs=None, batch_size=50, learning_rate=1.0, optimizer="sgd")
    setup = scene(free_after=0, training=step, private_steps=1, shared_rate=1e-6)
    played = play(setup, num_rounds=1)
    client = replace(setup.clients[1], training=step)
    (_, fit), state, memory = setup.method.exchanges, played.states[-1], played.memories[1]
    core = {name: 0.1 * torch.randn(tensor.shape, generator=Rng(3).torch()) for name, tensor in state["params"].items()}
    order = replace(fit.ask({**state, "params": core}, Turn(1, setup.profiles, Rng(1)))[1], round=1, rng=Rng(2))
    client.bench.load(client.params(order, memory))
    linears = client.bench.public.adapters.linears
    leaves = {f"{name}.{end}": linear.ends[end] for name, linear in linears.items() for end in linear.ends}
    assert leaves
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    logits, labels = client.bench.forward(dict(client.train))
    wanted = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), [*leaves.values()])
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    private = frozenset(leaves)
    fitted = client.alternate(order, memory, [Phase(private)])
    for (name, old), gradient in zip(before.items(), wanted, strict=True):
        torch.testing.assert_close(fitted.params[name], old - gradient, rtol=1e-4, atol=1e-6)
    assert any(bool(gradient.any()) for gradient in wanted)
