"""Training of two parts: each is trained to the same bits as if the other were not there."""

from dataclasses import replace

import pytest
import torch
from promises import Setup, play
from small_federation import VIT, WIDE, common

from fedquilt.adapters.common.module import WEIGHT
from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.axes_exchange import with_axes
from fedquilt.client import Training
from fedquilt.client.apart import WEIGHTS
from fedquilt.core.rng import Rng
from fedquilt.core.types import Turn
from fedquilt.core.worker import Phase
from fedquilt.methods import METHODS

TRAINING = Training(steps=3, epochs=None, batch_size=4, learning_rate=0.05)


def setup(name="heterotune", resting=None, **settings):
    """A method with parts apart; ``resting(name)`` says which tensors no client trains."""
    made = common((VIT, WIDE), training=TRAINING, private_rank=2, parts="apart")
    method = with_axes(METHODS[name](made.federation, **settings), made.federation, 3)
    clients = made.clients
    if resting is not None:
        rest = {id: frozenset(filter(resting, one.bench.layout.depth)) for id, one in clients.items()}
        clients = {id: replace(one, frozen=rest[id]) for id, one in clients.items()}
        fit = method.exchanges[-1]

        def expects(order):
            return {name: tensor for name, tensor in fit.expects(order).items() if not resting(name)}

        method = method._replace(exchanges=(*method.exchanges[:-1], fit._replace(expects=expects)))
    return Setup(method, made.federation.profiles, clients).bound()


def owned(played, *, shared):
    """The server's and the clients' tensors of one part."""
    server = played.states[-1]["params"]
    clients = {f"{id}/{n}": t for id, kept in played.memories.items() for n, t in kept.get("params", {}).items()}
    found = {name: tensor for name, tensor in {**server, **clients}.items() if "point." not in name}
    return {name: tensor for name, tensor in found.items() if is_shared(name) == shared and WEIGHT not in name}


@pytest.mark.parametrize(("name", "settings"), [("heterotune", {"align": "none"}), ("h2tune", {"ends": "common"})])
def test_each_part_is_trained_to_the_bits_that_it_has_without_the_other(name, settings) -> None:
    both = play(setup(name, **settings), num_rounds=2)
    for shared in (True, False):
        alone = play(setup(name, lambda tensor, rest=not shared: is_shared(tensor) == rest, **settings), num_rounds=2)
        wanted, found = owned(alone, shared=shared), owned(both, shared=shared)
        assert wanted.keys() == found.keys()
        assert any(bool(tensor.any()) for tensor in wanted.values())
        for own, tensor in wanted.items():
            assert torch.equal(found[own], tensor), own


def test_metrics_are_the_means_over_both_parts_and_the_sum_of_their_steps() -> None:
    made = setup(align="none")
    replies = []
    fit = made.method.exchanges[-1]

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        replies.append(reply)
        return reply, memory

    method = made.method._replace(exchanges=(*made.method.exchanges[:-1], fit._replace(work=work)))
    play(made._replace(method=method), num_rounds=1)
    assert [reply.metrics["steps"] for reply in replies] == [6.0] * len(made.clients)
    assert all(0 < reply.metrics["loss"] < 5 for reply in replies)


@pytest.mark.parametrize("best", [0.0, 1.0, None])
def test_the_weight_is_the_one_with_the_lowest_loss_on_validation_rows(best) -> None:
    """Rows may be labelled as one part answers; the loss is that of torch."""
    made = setup("h2tune", ends="common")
    played = play(made, num_rounds=1)
    client, memory = made.clients[1], played.memories[1]
    assert memory["params"][WEIGHT] == 0.5, "without validation rows it stays"
    order = replace(made.method.exchanges[-1].ask(played.states[-1], Turn(1, made.profiles, Rng(1)))[1], rng=Rng(2))
    fitted = client.alternate(order, memory, [Phase(frozenset(client.bench.layout.depth))])
    bench, adapters = client.bench, client.bench.public.adapters
    bench.load({**client.params(order, memory), **fitted.params})
    with torch.no_grad():
        answers = {}
        for part in ("common", "private"):
            with adapters.alone(part):
                answers[part] = bench.forward(dict(client.train))[0].argmax(-1)
    labels = {1.0: answers["common"], 0.0: answers["private"], None: client.train["labels"]}[best]
    held_out = replace(client, splits={"validation": {**client.train, "labels": labels}})
    weight = held_out.alternate(order, memory, [Phase(frozenset(bench.layout.depth))]).params[WEIGHT]
    bench.load({**client.params(order, memory), **fitted.params})

    def lost(share):
        with torch.no_grad():
            adapters.weight.fill_(share)
            return float(torch.nn.functional.cross_entropy(bench.forward(dict(client.train))[0], labels))

    assert lost(float(weight)) == pytest.approx(min(map(lost, WEIGHTS)))
