"""One client: whose tensors it uses, what it trains, with which learning rate."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from small_federation import small

from fedquilt.core.rng import Rng
from fedquilt.core.training import Training
from fedquilt.core.types import Order

SEED = Rng(9)


def test_a_clients_own_tensor_lies_over_the_servers_and_that_over_the_initial_one():
    client = small().clients[0]
    first, second, third, *_ = names = list(client.initial)
    order = Order(
        {first: torch.full_like(client.initial[first], 1.0), second: torch.full_like(client.initial[second], 1.0)}
    )
    memory = {"params": {second: torch.full_like(client.initial[second], 2.0)}}
    used = client.params(order, memory)
    assert list(used) == names
    assert bool((used[first] == 1).all())
    assert bool((used[second] == 2).all())
    assert used[third] is client.initial[third]
    assert client.params(order)[second] is order.params[second]
    assert client.params(Order({}), {})[first] is client.initial[first]


def test_fit_trains_and_returns_its_layers_and_the_head_alone():
    scene = small()
    client = scene.clients[1]
    fitted = client.fit(Order({}, rng=SEED), None, [0, 2])
    expected = {*scene.layout.names([0, 2]), *scene.layout.head}
    assert fitted.params.keys() == expected
    assert all(not torch.equal(fitted.params[name], client.initial[name]) for name in expected)
    assert fitted.num_examples == 8 == client.profile.num_examples
    assert fitted.metrics.keys() == {"loss", "accuracy", "steps"}
    assert fitted.metrics["steps"] == 2


def test_t14_all_subsets_of_twelve_blocks_train_their_own_tensors_and_no_others():
    """T14: block 1 is neither 10 nor 11; the oracle reads the number between dots."""
    scene = small("tiny:vit?layers=12&width=8&image=4&patch=2")
    layout, asked = scene.layout, []
    client = replace(scene.clients[0], fitting=lambda job: asked.append(job.phases))
    number = {name: re.search(r"\.layers\.(\d+)\.", name) for name in layout.depth}
    blocks = {name: int(match[1]) if match else None for name, match in number.items()}
    assert {name for name, block in blocks.items() if block is None} == layout.head
    subsets = [subset for size in range(13) for subset in itertools.combinations(range(12), size)]
    assert len(subsets) == 4096
    for subset in subsets:
        client.fit(Order({}), None, subset)
        (phase,) = asked.pop()
        assert phase.names == {name for name, block in blocks.items() if block is None or block in subset}


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_learning_rate_is_the_rounds(number):
    training = Training(
        steps=1, epochs=None, optimizer="sgd", learning_rate=0.4, schedule="linear", warmup_rounds=2, final_scale=0.5
    )
    rates = {0: 0.2, 1: 0.4, 3: 0.2}  # of 4 rounds: warm-up to 0.4, then 0.4 in round 2 and half of it in the last
    client = small(training=training, dropout=0.0).clients[0]
    plain = replace(
        client, training=replace(training, schedule="constant", warmup_rounds=0, learning_rate=rates[number])
    )
    order = Order({}, round=number, rng=SEED)
    mine, expected = client.fit(order, None, [3]).params, plain.fit(order, None, [3]).params
    assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_fit_can_run_on_fewer_blocks():
    scene = small()
    client, ran = scene.clients[0], []
    for index, block in enumerate(scene.bench.model.get_submodule(scene.bench.blocks.path)):
        block.register_forward_hook(lambda *_args, index=index: ran.append(index))
    client.fit(Order({}, rng=SEED), None, [1, 3], blocks=[1, 3])
    assert ran == [1, 3] * 2


def test_evaluation_uses_the_clients_own_tensors_and_knows_only_splits_with_rows():
    client = small().clients[2]
    plain = client.evaluate(Order({}))
    assert plain.keys() == {"loss", "accuracy", "examples"}
    own = {
        "params": {
            name: tensor + 0.5 * torch.randn(tensor.shape, generator=SEED.torch())
            for name, tensor in client.initial.items()
        }
    }
    assert client.evaluate(Order({}), own)["loss"] != plain["loss"]
    assert client.evaluate(Order(own["params"])) == client.evaluate(Order({}), own)
    assert client.evaluate(Order({}), split="validation") == {}
    empty = {name: column[:0] for name, column in client.splits["test"].items()}
    assert replace(client, splits={"test": empty}).evaluate(Order({})) == {}


def test_layer_scores_are_one_number_for_each_block_at_the_tensors_it_would_use():
    client = small().clients[0]
    plain = client.layer_scores(Order({}))
    assert len(plain) == 4
    assert all(score > 0 for score in plain)
    order = Order({name: tensor + 0.1 for name, tensor in client.initial.items()})
    moved = client.layer_scores(order)
    assert moved != plain
    assert client.layer_scores(Order({}), {"params": order.params}) == moved
    assert client.layer_scores(order, kind="norm") != moved != client.layer_scores(order, objective="logit")


def test_what_a_client_freezes_it_neither_trains_nor_gives_back():
    scene = small()
    client = scene.clients[1]
    rests = {name for name in scene.layout.depth if name.endswith("lora_A")}
    frozen = client.freezing(rests)
    assert (client.frozen, frozen.frozen) == (frozenset(), rests)
    fitted = frozen.fit(Order({}, rng=SEED), None, [0, 2])
    assert fitted.params.keys() == {*scene.layout.names([0, 2]), *scene.layout.head} - rests
    assert frozen.freezing(scene.layout.head).fit(Order({}, rng=SEED), None, [0]).params.keys() == {
        name for name in scene.layout.names([0]) if name.endswith("lora_B")
    }
    assert client.fit(Order({}, rng=SEED), None, [0]).params.keys() >= {*scene.layout.names([0])}
