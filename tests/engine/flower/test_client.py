"""The ClientApp: its answers, its memories, and the messages that it rejects."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.mod import fixedclipping_mod, message_size_mod
from in_process_grid import RUN, app_of, cards_of
from promises import same
from toys import fedavg_setup, local_bias_setup, vertical_setup

from fedquilt.core.errors import TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order
from fedquilt.engine.flower.client import Site, client_app, memory_folder
from fedquilt.engine.flower.codec import order_content, read_reply
from fedquilt.engine.flower.compat import identify
from fedquilt.engine.flower.memory_store import MemoryStore
from fedquilt.engine.flower.packing import packed, unpacked

NODE = 7001


@pytest.fixture(autouse=True)
def _part_of_a_run():
    identify(1)


def context_of(partition=0) -> Context:
    return Context(1, NODE, {} if partition is None else {"partition-id": partition}, RecordDict(), {})


def message(content: RecordDict, kind: str) -> Message:
    made = Message(content, NODE, kind)
    made.metadata.__dict__["_message_id"] = "message-1"
    return made


def order_of(setup, number: int, exchange: int = 0) -> Order:
    weight = torch.arange(4.0).double() + number
    return Order({"weight": weight}, {"steps": 2}, number, Rng(5, ("round", number, exchange)))


def asked(app, setup, number: int, client: int = 0, run: str = RUN) -> Message:
    order = order_of(setup, number)
    return app(message(order_content(order, client, "fit", run), "train.fit"), context_of(client))


def reply_of(answer: Message, setup, number: int, client: int = 0):
    assert not answer.has_error(), answer.error
    return read_reply(answer.content, client, order_of(setup, number), "fit", RUN)


def app_for(setup, folder, **more):
    return app_of(setup.method, setup.profiles, setup.clients, folder, **more)


def test_hello_announces_the_sites_card(tmp_path):
    setup = fedavg_setup()
    answer = app_for(setup, tmp_path)(message(packed({"kind": "hello"}), "query.hello"), context_of(2))
    head, _ = unpacked(answer.content, "node")
    assert head == {"kind": "card", "card": cards_of(setup.method, setup.profiles)[2]}
    assert head["card"]["num_examples"] == 12


def test_a_restarted_client_goes_on_where_it_was(tmp_path):
    setup = local_bias_setup()
    whole, parts = app_for(setup, tmp_path / "whole"), tmp_path / "parts"
    for number in range(3):
        left = reply_of(asked(whole, setup, number), setup, number)
        right = reply_of(asked(app_for(setup, parts), setup, number), setup, number)
        assert same(left.params, right.params)
    one, other = (MemoryStore(memory_folder(tmp_path / name, RUN, 0)).newest for name in ("whole", "parts"))
    assert same(one, other)
    assert "bias" in one["params"]


def test_an_order_that_comes_twice_gets_the_same_reply_and_leaves_the_same_memory(tmp_path):
    setup = local_bias_setup()
    app, store = app_for(setup, tmp_path), MemoryStore(memory_folder(tmp_path, RUN, 0))
    asked(app, setup, 0)
    first = reply_of(asked(app, setup, 1), setup, 1)
    memory = store.newest
    again = reply_of(asked(app, setup, 1), setup, 1)
    assert same([first.params, first.metrics], [again.params, again.metrics])
    assert same(memory, store.newest)
    asked(app, setup, 2)
    assert not same(memory, store.newest)


def test_an_order_of_long_ago_is_refused_and_changes_nothing(tmp_path):
    setup = local_bias_setup()
    app, store = app_for(setup, tmp_path), MemoryStore(memory_folder(tmp_path, RUN, 0))
    for number in range(4):
        asked(app, setup, number)
    memory = store.newest
    answer = asked(app, setup, 1)
    assert answer.error.reason.startswith("the order is of round 2, but this client has gone on to round 4")
    assert same(memory, store.newest)


def test_runs_do_not_share_memory(tmp_path):
    setup = local_bias_setup()
    app = app_for(setup, tmp_path)
    first = reply_of(asked(app, setup, 0), setup, 0)
    asked(app, setup, 1)
    other = asked(app, setup, 0, run="beef" * 4)
    fresh = read_reply(other.content, 0, order_of(setup, 0), "fit", "beef" * 4)
    assert same(first.params, fresh.params)


def test_work_that_fails_is_an_error_with_its_reason_and_leaves_the_memory(tmp_path):
    setup = local_bias_setup()
    fit = setup.method.exchanges[0]

    def failing(client, order, memory):
        if order.round == 1:
            raise TrainingError("loss is nan at step 3")
        return fit.work(client, order, memory)

    method = setup.method._replace(exchanges=(fit._replace(work=failing),))
    app = app_for(setup._replace(method=method), tmp_path)
    asked(app, setup, 0)
    memory = MemoryStore(memory_folder(tmp_path, RUN, 0)).newest
    assert asked(app, setup, 1).error.reason == "loss is nan at step 3"
    assert same(memory, MemoryStore(memory_folder(tmp_path, RUN, 0)).newest)


@pytest.mark.parametrize("run", ["../../etc", "", "/tmp/x", "beef" * 20, "UPPER" * 4])
def test_a_run_key_that_is_no_key_never_becomes_a_path(run, tmp_path):
    setup = local_bias_setup()
    answer = asked(app_for(setup, tmp_path / "inner"), setup, 0, run=run)
    assert "the server sent the run key" in answer.error.reason
    assert [*tmp_path.rglob("*")] == []


@pytest.mark.parametrize(
    ("kind", "partition", "content", "reason"),
    [
        ("train.fit", None, packed({}), "node 7001 has the partition-id None; start it with --node-config"),
        ("train.fit", "2", packed({}), "node 7001 has the partition-id '2'; start it with --node-config"),
        ("train.fit", 0, RecordDict(), "the server sent a message without an index"),
        ("train.fit", 0, RecordDict({"tensors": ArrayRecord()}), "the server sent a message without an index"),
        ("train.fit", 1, order_content(order_of(None, 0), 0, "fit", RUN), "sent client 0 where 1 is expected"),
        ("train.fit", 0, order_content(order_of(None, 0), 0, "embed", RUN), "sent exchange 'embed' where 'fit' is"),
        ("query.hello", 0, packed({"kind": "order"}), "the server sent a hello that is none"),
    ],
)
def test_what_a_client_cannot_take_is_an_error_that_says_why(kind, partition, content, reason, tmp_path):
    answer = app_for(fedavg_setup(), tmp_path)(message(content, kind), context_of(partition))
    assert reason in answer.error.reason
    assert not [*tmp_path.iterdir()]


def test_an_exchange_that_the_method_does_not_have_is_no_action(tmp_path):
    app = app_for(fedavg_setup(), tmp_path)
    with pytest.raises(ValueError, match="No train function registered with name 'steal'"):
        app(message(packed({}), "train.steal"), context_of())


def test_every_exchange_is_an_action_of_its_own(tmp_path):
    setup = vertical_setup()
    app = app_for(setup, tmp_path)
    order = Order({}, {"rows": [1, 2, 3]}, 0, Rng(1))
    answer = app(message(order_content(order, 1, "embed", RUN), "train.embed"), context_of(1))
    assert read_reply(answer.content, 1, order, "embed", RUN).params


def test_mods_see_every_message_and_those_that_calculate_refuse(tmp_path):
    setup = fedavg_setup()
    seen = []

    def noting(message, context, call_next):
        seen.append(message.metadata.message_type)
        return call_next(message, context)

    app = app_for(setup, tmp_path, mods=[noting, message_size_mod])
    assert reply_of(asked(app, setup, 0), setup, 0).metrics["loss"] > 0
    app(message(packed({"kind": "hello"}), "query.hello"), context_of())
    assert seen == ["train.fit", "query.hello"]
    clipping = app_for(setup, tmp_path, mods=[fixedclipping_mod])
    order = order_content(order_of(setup, 0), 0, "fit", RUN)
    order["index"]["clipping_norm"] = 1.0
    with pytest.raises(TypeError, match="Unsupported serialization type"):  # bytes are never taken for numbers
        clipping(message(order, "train.fit"), context_of())


def test_memories_may_depend_on_the_node(tmp_path):
    setup = local_bias_setup()
    cards = cards_of(setup.method, setup.profiles)
    sites = {id: Site(id, client, setup.method, cards[id]) for id, client in setup.clients.items()}
    app = client_app(lambda partition, node: sites[partition], lambda context: tmp_path / f"node {context.node_id}")
    asked(app, setup, 0, client=3)
    assert (tmp_path / "node 7001" / RUN / "client-003" / "memory.json").exists()
    assert (
        json.loads((tmp_path / "node 7001" / RUN / "client-003" / "memory.json").read_text())["kept"][-1]["round"] == 0
    )
