"""FLoRA on real clients: the exact mean goes into the base, adapters are fresh, and who was away catches up."""

from __future__ import annotations

import pytest
import torch
from promises import Setup, play, same
from recording import in_round, mean_change, recorded, weights
from small_federation import GPT2, small

from fedquilt.core.errors import RoundError
from fedquilt.core.factors import factors
from fedquilt.core.types import Order
from fedquilt.methods.fedex_lora import fedex_lora
from fedquilt.methods.flora import flora

RANKS = (2, 4, 3)


def scene_and_setup(factory=flora, model=None, **settings):
    ranks = RANKS if factory is flora else None
    more, layers = ({}, 4) if model is None else ({"model": model}, 3)
    scene = small(budgets=(layers,) * 3, rank=4, ranks=ranks, **more)
    return scene, Setup(factory(scene.federation, **settings), scene.federation.profiles, scene.clients).bound()


@pytest.mark.parametrize("model", [None, GPT2])
def test_t21_every_round_adds_the_exact_mean_of_products_to_the_base(model):
    """T21: unlike ranks and scales; also where the base keeps its weight transposed and d is not k."""
    scene, setup = scene_and_setup(model=model)
    played, sent = recorded(setup, num_rounds=3)
    before = {}
    for number in range(3):
        view = setup.method.view(played.states[number + 1], setup.profiles[0])
        now, mean = (
            weights(view.params, scene.federation.scaling),
            mean_change(in_round(sent, number), scene.federation.scaling),
        )
        for module, matrix in mean.items():
            assert float(matrix.norm()) > 1e-3
            torch.testing.assert_close(now[module] - before.get(module, 0), matrix, rtol=0, atol=1e-6)
        before = now


def test_every_client_begins_every_round_with_a_fresh_adapter_of_its_own_rank():
    _, setup = scene_and_setup()
    fits = []

    class Watching:
        def __init__(self, client):
            self.client = client

        def __getattr__(self, name):
            return getattr(self.client, name)

        def fit(self, order, memory, layers, *, blocks=None):
            fits.append((order.round, self.client.id, factors(self.client.params(order, memory))))
            return self.client.fit(order, memory, layers)

    play(setup._replace(clients={k: Watching(client) for k, client in setup.clients.items()}), num_rounds=2)
    assert [(number, client) for number, client, _ in fits] == [(t, k) for t in range(2) for k in range(3)]
    for _, client, pairs in fits:
        assert all(pair.A.shape[0] == RANKS[client] and not bool(pair.B.any()) for pair in pairs.values())
    module = next(iter(fits[0][2]))
    first_rows = [pairs[module].A[0] for _, _, pairs in fits]
    assert all(not torch.equal(a, b) for i, a in enumerate(first_rows) for b in first_rows[:i])


def test_t28_the_model_after_the_merge_is_that_of_base_and_mean():
    """T28: logits of the view are those of the base with the dense mean added by hand."""
    scene, setup = scene_and_setup()
    played, sent = recorded(setup, num_rounds=1)
    mean = mean_change(sent, scene.federation.scaling)
    view = setup.method.view(played.states[-1], setup.profiles[0])
    client, batch = setup.clients[0], setup.clients[1].train
    scene.bench.load(client.params(view))
    ours, _ = scene.bench.forward(batch)
    blank = {name: tensor for name, tensor in client.params(view).items() if not name.endswith(".shift")}
    scene.bench.load(blank)
    base, _ = scene.bench.forward(batch)
    for module, adapter in scene.bench.adapters.items():
        adapter.base.weight.data += mean[module].float()
    by_hand, _ = scene.bench.forward(batch)
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-5)
    assert float((ours - base).detach().abs().max()) > 1e-4


def test_an_order_carries_the_head_and_the_changes_that_its_client_lacks_and_no_adapter():
    scene, setup = scene_and_setup()
    everybody = setup.profiles
    played, sent = recorded(
        setup, num_rounds=4, cohort=lambda number: [p for p in everybody if p.id != 2 or number in (0, 3)]
    )
    versions = {}
    for one in sent:
        assert scene.layout.head <= one.order.params.keys()
        changes = {name for name in one.order.params if ".change." in name}
        assert one.order.params.keys() == changes | scene.layout.head
        versions[one.order.round, one.reply.client] = {int(name.split(".change.")[1].split(".")[0]) for name in changes}
    assert versions[0, 0] == set()
    assert versions[1, 0] == {1}
    assert versions[2, 0] == {2}
    assert versions[3, 0] == {3}
    assert versions[3, 2] == {1, 2, 3}
    # the bytes of the record are those of the changes of 8 modules in float32: B and A of 6 or 9 ranks in all would
    # have 96 or 144 numbers, the dense 8 x 8 matrix has 64
    head = sum(4 * torch.Size(scene.layout.shapes[name]).numel() for name in scene.layout.head)
    matrices = 8 * 4 * 8 * 8
    assert played.traffic[1][0].bytes_down[0] == head + matrices
    assert played.traffic[3][0].bytes_down[2] == head + 3 * matrices
    # what everyone has is forgotten; 0 and 1 have confirmed version 3, and so has 2
    log = played.states[-1]["base"]["log"]
    assert (log["version"], log["oldest"], len(log["changes"])) == (4, 3, 1)


@pytest.mark.parametrize("factory", [flora, fedex_lora])
def test_t34_who_was_away_for_rounds_ends_with_the_same_base_to_the_bit(factory):
    """T34"""
    _, setup = scene_and_setup(factory)
    everybody = setup.profiles
    played = play(setup, num_rounds=5, cohort=lambda number: [p for p in everybody if p.id != 2 or number == 4])
    bases = [played.memories[k]["base"] for k in range(3)]
    assert bases[2]["version"] == 4
    assert bases[2]["shift"]
    assert same(bases[2], bases[0])
    assert same(bases[2], bases[1])


def test_t34_a_reply_that_was_lost_does_not_make_a_client_take_a_change_twice():
    """T34: the client has the change, and the server does not know it."""
    _, setup = scene_and_setup()
    fit = setup.method.exchanges[0]

    def work(client, order, memory):
        reply, memory = fit.work(client, order, memory)
        if (client.id, order.round) == (1, 1):
            reply = reply.__class__(reply.client, reply.params, -1.0)  # refused, after the client had merged
        return reply, memory

    lossy = setup.method._replace(exchanges=(fit._replace(work=work),))
    played = play(setup._replace(method=lossy), num_rounds=3)
    assert played.traffic[1][0].dropped == {1: "weight is -1.0, not a number above 0"}
    assert same(played.memories[1]["base"], played.memories[0]["base"])


def test_a_client_that_lost_its_memory_is_dropped_and_says_why():
    _, setup = scene_and_setup()
    half = play(setup, num_rounds=2)
    memories = {**half.memories, 1: {}}
    played = play(setup, num_rounds=3, start=2, state=half.states[-1], memories=memories)
    ((traffic,),) = played.traffic
    assert traffic.dropped[1].startswith("the client's base is version 0 and the server's 2")
    assert sorted(traffic.bytes_up) == [0, 2]


def test_a_wrong_version_is_told_as_an_error_of_the_round():
    _, setup = scene_and_setup()
    order = Order({}, {"layers": [0], "base": 3, "rank": 2})
    with pytest.raises(RoundError, match="is version 0 and the server's 3"):
        setup.method.exchanges[0].work(setup.clients[0], order, {})


def test_what_a_reply_must_hold_has_the_clients_own_rank():
    _, setup = scene_and_setup()
    _, sent = recorded(setup, num_rounds=1)
    for one in sent:
        expected = setup.method.exchanges[0].expects(one.order)
        assert expected.keys() == one.reply.params.keys()
        assert all((expected[n].shape, expected[n].dtype) == (t.shape, t.dtype) for n, t in one.reply.params.items())
