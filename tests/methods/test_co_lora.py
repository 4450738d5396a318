"""Co-LoRA: what is shared and with whom, and personal aggregation by numbers worked out by hand."""

import math

import pytest
import torch
from promises import Setup, copied, play, same
from small_federation import LLAMA, VIT, WIDE, anchored, several

from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.axes_exchange import with_axes
from fedquilt.core.errors import ConfigError
from fedquilt.methods.co_lora import co_lora, mean_of, relevance


def setup(models=(VIT, WIDE), *, scene=None, **settings) -> Setup:
    scene = scene or anchored(models)
    method = with_axes(co_lora(scene.federation, **settings), scene.federation, 3)
    return Setup(method, scene.federation.profiles, scene.clients)


def test_only_matrices_and_vectors_without_a_models_width_cross_architectures():
    state = play(setup(), num_rounds=1).states[-1]
    shared = {name: tensor for name, tensor in state["params"].items() if is_shared(name)}
    assert {tuple(tensor.shape) for tensor in shared.values()} == {(3, 3), (3,)}
    assert all(tensor.any() for tensor in shared.values())
    owners = {name.partition("/")[0] for name in state["params"] if name not in shared}
    assert len(owners) == 2


def test_the_mean_is_over_all_clients_by_examples():
    built = setup()
    fit = built.method.exchanges[1]
    replies = []

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        replies.append(reply)
        return reply, memory

    exchanges = (built.method.exchanges[0], fit._replace(work=work))
    state = play(built._replace(method=built.method._replace(exchanges=exchanges)), num_rounds=1).states[-1]
    name = "common.query.1"  # in the last block of both models, which all clients train
    total = sum(reply.weight for reply in replies)
    wanted = sum(reply.weight / total * reply.params[name] for reply in replies)
    assert len(replies) == 4
    torch.testing.assert_close(state["params"][name], wanted)


def test_the_smallest_model_is_the_anchor_and_the_only_one_that_speaks():
    for models in ((VIT, WIDE), (WIDE, VIT)):
        played = play(setup(models), num_rounds=2)
        first, second = played.traffic
        speak = {own["architecture"] for own in first[0].settings.values() if own["speaks"]}
        assert speak == {"vit-4x8"}
        assert not second[0].settings
        points = played.states[-1]["axes"]["points"]
        assert {tuple(tensor.shape) for tensor in points.values()} == {(40, 3), (40, 8), (8, 3)}


def test_every_model_gets_orthonormal_rows_and_writes_in_its_own_outputs():
    built = setup()
    play(built, num_rounds=1)
    seen = set()
    for client in built.clients.values():
        for linear in client.bench.public.adapters.linears.values():
            torch.testing.assert_close(linear.encoder @ linear.encoder.T, torch.eye(3), atol=1e-5, rtol=0)
            assert linear.decoder.any()
            seen.add(tuple(linear.encoder.shape))
    assert seen == {(3, 8), (3, 16)}


def test_weights_are_a_softmax_of_cosines_over_the_others():
    updates = {
        "0": {"p": torch.tensor([1.0, 0.0])},
        "1": {"p": torch.tensor([2.0, 0.0])},
        "2": {"p": torch.tensor([0.0, 3.0])},
        "3": {"p": torch.tensor([-1.0, 0.0])},
    }
    weights = relevance(updates, "0", 0.5)
    total = math.exp(2) + 1 + math.exp(-2)
    assert weights == pytest.approx({"1": math.exp(2) / total, "2": 1 / total, "3": math.exp(-2) / total})
    # a client that never replied has no direction: the others count alike
    assert relevance(updates, "9", 0.5) == pytest.approx(dict.fromkeys(updates, 0.25))
    assert relevance({"0": updates["0"]}, "0", 0.5) == {}


def test_a_cosine_is_over_what_both_clients_updated():
    own = {"p": torch.tensor([1.0]), "only here": torch.tensor([5.0])}
    weights = relevance({"0": own, "1": {"p": torch.tensor([2.0])}, "2": {"other": torch.tensor([1.0])}}, "0", 1.0)
    assert weights == pytest.approx({"1": math.e / (math.e + 1), "2": 1 / (math.e + 1)})


def test_a_mean_is_over_the_clients_that_returned_the_tensor():
    latest = {"1": {"p": torch.tensor([1.0])}, "2": {"p": torch.tensor([4.0])}, "3": {}}
    weights = {"1": 0.2, "2": 0.4, "3": 0.4}
    torch.testing.assert_close(mean_of("p", latest, weights, torch.zeros(1)), torch.tensor([3.0]))
    assert mean_of("q", latest, weights, torch.tensor([7.0])).item() == 7.0


def test_what_a_client_receives_leaves_its_own_out():
    built = setup(aggregation="rela")
    state = play(built, num_rounds=1).states[-1]
    name, latest = "common.value.1", state["relevance"]["latest"]
    assert sorted(latest) == ["0", "1", "2", "3"]
    for profile in built.profiles:
        order = built.method.view(state, profile)
        weights = relevance(state["relevance"]["updates"], str(profile.id), 0.5)
        assert str(profile.id) not in weights
        wanted = sum(weight * latest[other][name] for other, weight in weights.items())
        torch.testing.assert_close(order.params[name], wanted)
    changed = copied(state)
    changed["relevance"]["latest"]["0"][name] += 1.0
    mine, before = (built.method.view(one, built.profiles[0]).params for one in (changed, state))
    assert same(mine, before)


def test_updates_are_a_moving_average_over_rounds():
    built = setup(aggregation="rela", momentum=0.25)
    states = play(built, num_rounds=2).states
    name = "common.query.1"
    sent = built.method.view(states[1], built.profiles[0]).params[name]
    now = states[2]["relevance"]["latest"]["0"][name] - sent
    wanted = 0.25 * states[1]["relevance"]["updates"]["0"][name] + 0.75 * now
    torch.testing.assert_close(states[2]["relevance"]["updates"]["0"][name], wanted)


def test_adapters_without_shared_tensors_are_refused():
    with pytest.raises(ConfigError, match=r"has no adapters with tensors to share; set adapter\.kind = 'anchored'"):
        co_lora(several().federation)


def test_architectures_without_the_same_modules_are_refused():
    scene = anchored((VIT, LLAMA))
    co_lora(scene.federation)
    own = [*scene.federation.layouts]
    fewer = {name: shape for name, shape in scene.federation.layouts[own[1]].shapes.items() if ".value" not in name}
    layouts = {**scene.federation.layouts}
    layouts[own[1]] = layouts[own[1]].__class__(own[1], 3, dict.fromkeys(fewer, 0), fewer)
    odd = scene.federation.__class__(scene.federation.profiles, layouts, scene.federation.initial, 4)
    with pytest.raises(ConfigError, match=r"'common\.value\.0' is missing in .* and \(3, 3\) in"):
        co_lora(odd)
