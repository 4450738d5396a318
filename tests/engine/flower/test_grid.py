"""``send`` over a Grid: nobody is counted twice, what fails has a reason, and the honest end in the same bits."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Error, Message, RecordDict
from in_process_grid import FIRST_NODE, RUN, InProcessGrid, app_of, cards_of
from promises import play, same
from small_federation import small
from toys import fedavg_setup, local_bias_setup, regression_clients, vertical_setup

from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.loop import rounds
from fedquilt.core.rng import Rng
from fedquilt.core.types import Failure, Turn
from fedquilt.engine.flower.certs import node_key
from fedquilt.engine.flower.client import Site, client_app
from fedquilt.engine.flower.grid import GridEngine
from fedquilt.engine.flower.handshake import card, mismatches
from fedquilt.engine.flower.packing import announced, packed
from fedquilt.engine.flower.seal import is_signed, signature

SOON = 0.3


def engine_of(setup, folder, *, meddle=None, cards=None, **more):
    grid = InProcessGrid(app_of(setup.method, setup.profiles, setup.clients, folder), len(setup.profiles), meddle)
    engine = GridEngine(
        grid, cards or cards_of(setup.method, setup.profiles), RUN, **{"timeout": SOON, "poll": 0.05, **more}
    )
    return engine, grid


def played(setup, engine, num_rounds=3, **more):
    begin = setup.method.init(Rng(5).child("init"))
    return [
        *rounds(
            setup.method,
            lambda number: setup.profiles,
            engine.send,
            Rng(5),
            num_rounds=num_rounds,
            state=more.pop("state", begin),
            **more,
        )
    ]


def of(message: Message, client: int, number: int | None = None) -> bool:
    index = json.loads(message.content["index"]["json"])
    return index.get("client") == client and number in (None, index.get("round"))


# Faults ------------------------------------------------------------


def with_params(content: RecordDict, params: dict, **head) -> RecordDict:
    index = json.loads(content["index"]["json"])
    kept = {k: v for k, v in index.items() if k not in ("format", "tensors", "bytes")}
    return packed({**kept, **head}, params)


GOOD = {"weight": torch.zeros(4, dtype=torch.float64), "bias": torch.zeros((), dtype=torch.float64)}
NAN = {**GOOD, "weight": torch.full((4,), float("nan"), dtype=torch.float64)}
OLD: dict = {}


def replayed(order, reply):
    OLD.setdefault("reply", reply.content)
    return Message(OLD["reply"], reply_to=order)


FAULTS = {
    "silent": (lambda order, reply: None, "no reply within 0.3 s"),
    "gone": (lambda order, reply: Message(Error(5, "Node is\nunavailable"), reply_to=order), "no reply: Node is unav"),
    "raises": (lambda order, reply: Message(Error(2, "boom"), reply_to=order), "boom"),
    "terminal": (lambda order, reply: Message(Error(2, "\x1b[2Jlost\x07"), reply_to=order), "?[2Jlost?"),
    "nan": (lambda o, r: Message(with_params(r.content, NAN), reply_to=o), "tensor 'weight' is not finite"),
    "shape": (
        lambda o, r: Message(with_params(r.content, {**GOOD, "weight": torch.zeros(4, 2)}), reply_to=o),
        "client 2 sent tensor 'weight' as float32 (4, 2); it is float64 (4,)",
    ),
    "name": (
        lambda o, r: Message(with_params(r.content, {**GOOD, "extra": torch.zeros(1)}), reply_to=o),
        "client 2 sent tensor 'extra', which nobody asked for",
    ),
    "another": (lambda o, r: Message(with_params(r.content, GOOD, client=1), reply_to=o), "client 1 where 2 is"),
    "old": (replayed, "client 2 sent round 0 where "),
    "weight": (lambda o, r: Message(with_params(r.content, GOOD, weight=-1.0), reply_to=o), "weight is -1.0"),
    "empty": (lambda order, reply: Message(RecordDict(), reply_to=order), "without an index"),
    "junk": (
        lambda o, r: Message(with_params(r.content, {"x": torch.zeros(200_000)}), reply_to=o),
        "'x', which nobody",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_client_is_dropped_with_its_reason_and_the_others_end_in_the_same_bits(fault, tmp_path):
    bad, reason = FAULTS[fault]
    OLD.clear()

    def meddle(order, reply):
        # round 0 goes well, so that there is an old reply to send again
        return bad(order, reply) if of(order, 2) and (fault == "old" or not of(order, 2, 0)) else reply

    setup = fedavg_setup()
    allowed = announced(GOOD)
    engine, grid = engine_of(setup, tmp_path, meddle=meddle, allowed=lambda exchange, client, order: allowed)
    engine.hello(5)
    done = played(setup, engine)
    first, *later = done
    assert first.traffic[0].dropped == {}
    for finished in later:
        assert [*finished.traffic[0].dropped] == [2]
        assert reason in finished.traffic[0].dropped[2]
    without = play(fedavg_setup(), away=lambda client, exchange, number: client == 2 and number > 0)
    assert same(done[-1].state, without.states[-1])
    assert grid.calls.count(("train.fit", 2)) == 3


def test_replies_that_come_late_twice_or_unasked_are_not_counted(tmp_path):
    setup = fedavg_setup()
    engine, grid = engine_of(setup, tmp_path)
    engine.hello(5)
    pull = grid.pull_messages
    kept: list[Message] = []

    def doubled(ids):
        found = pull(ids)
        kept.extend(found)
        return [*found, *found, *kept[:2]]

    grid.pull_messages = doubled
    done = played(setup, engine)
    assert same([r.state for r in done], play(fedavg_setup()).states[1:])


def test_too_few_good_replies_stop_the_run_by_name(tmp_path):
    setup = fedavg_setup()
    engine, _ = engine_of(setup, tmp_path, meddle=lambda order, reply: reply if of(order, None) else None)
    engine.hello(5)
    with pytest.raises(RoundError, match=r"round 1, exchange 'fit': 0 of 4 clients .*client 3: no reply within 0.3 s"):
        played(setup, engine)


def test_stragglers_are_not_waited_for_once_enough_have_answered(tmp_path):
    setup = fedavg_setup()
    engine, _ = engine_of(
        setup, tmp_path, meddle=lambda o, r: None if of(o, 1) else r, timeout=600, grace=0.2, enough=lambda orders: 3
    )
    engine.hello(5)
    done = played(setup, engine, num_rounds=2)
    for finished in done:
        assert finished.traffic[0].dropped == {1: "no reply within 0.2 s after enough others had answered"}
    assert same(done[-1].state, play(fedavg_setup(), num_rounds=2, away=lambda client, *_: client == 1).states[-1])


def test_a_message_that_flower_does_not_take_is_told_at_once(tmp_path):
    setup = fedavg_setup()
    engine, grid = engine_of(setup, tmp_path, timeout=60)
    engine.hello(5)
    push = grid.push_messages
    grid.push_messages = lambda messages: [id if number else None for number, id in enumerate(push(messages))]
    (done,) = played(setup, engine, 1)
    assert done.traffic[0].dropped == {0: "Flower did not accept the message to its node"}


def test_a_stopped_engine_does_not_wait(tmp_path):
    setup, stop = fedavg_setup(), threading.Event()
    engine, _ = engine_of(setup, tmp_path, meddle=lambda o, r: r if of(o, None) else None, timeout=60, stop=stop)
    engine.hello(5)
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(RoundError, match="Flower's engine ended"):
        played(setup, engine)


def test_one_message_for_each_client_and_exchange_and_one_hello(tmp_path):
    setup = vertical_setup()
    engine, grid = engine_of(setup, tmp_path)
    engine.hello(5)
    played(setup, engine, 4)
    assert engine.messages == {"query.hello": 3, "train.embed": 12, "train.backprop": 12}
    assert len(grid.calls) == 27
    assert engine.memories == {}


# Nodes ------------------------------------------------------------


def test_a_node_that_comes_back_under_another_number_goes_on(tmp_path):
    setup = local_bias_setup()
    engine, grid = engine_of(setup, tmp_path)
    engine.hello(5)
    (first,) = played(setup, engine, 1)
    grid.contexts.pop(engine.nodes[1])
    (second,) = played(setup, engine, 2, start=1, state=first.state)
    assert second.traffic[0].dropped == {1: "no reply: node is gone"}
    new = grid.add(1)
    (third,) = played(setup, engine, 3, start=2, state=second.state)
    assert third.traffic[0].dropped == {}
    assert engine.nodes[1] == new
    without = play(local_bias_setup(), away=lambda client, exchange, number: (client, number) == (1, 1))
    assert same(third.state, without.states[-1])


def test_a_second_node_cannot_take_a_partition_that_is_held(tmp_path):
    setup = fedavg_setup()
    engine, grid = engine_of(setup, tmp_path)
    grid.add(2)
    engine.hello(5)  # and it cannot veto the start either
    assert engine.nodes[2] == FIRST_NODE + 1
    assert engine.rejected_nodes == {7005: "node 7005 claims partition 2, which node 7002 holds"}
    assert len(played(setup, engine)) == 3


def test_clients_that_do_not_join_are_named(tmp_path):
    setup = fedavg_setup()
    engine, grid = engine_of(setup, tmp_path)
    grid.contexts.pop(FIRST_NODE)
    with pytest.raises(
        RoundError, match=r"1 of 4 clients did not join within 0.5 s \(partitions 3\); start their Super"
    ):
        engine.hello(0.5)


def test_clients_may_join_late(tmp_path):
    setup = fedavg_setup()
    engine, grid = engine_of(setup, tmp_path)
    contexts, grid.contexts = grid.contexts, {}
    threading.Timer(0.3, lambda: grid.contexts.update(contexts)).start()
    engine.hello(5)
    assert sorted(engine.nodes) == [0, 1, 2, 3]
    assert len(grid.calls) == 4


def test_hello_does_not_wait_for_the_dead_once_everyone_has_joined(tmp_path):
    setup = fedavg_setup()
    dead = []
    engine, grid = engine_of(
        setup, tmp_path, timeout=600, meddle=lambda o, r: None if o.metadata.dst_node_id in dead else r
    )
    dead.append(grid.add(2))  # a killed node that Flower still counts as there
    engine.hello(600)
    assert engine.nodes.keys() == {0, 1, 2, 3}
    assert not {*engine.nodes.values()} & {*dead}


def test_a_node_with_a_partition_that_is_none_is_refused(tmp_path):
    setup = fedavg_setup()
    clients = {**setup.clients, 9: regression_clients()[0]}
    cards = {**cards_of(setup.method, setup.profiles), 9: {"partition": 9}}
    sites = {id: Site(id, client, setup.method, cards[id]) for id, client in clients.items()}
    grid = InProcessGrid(client_app(lambda partition, node: sites[partition], tmp_path), 4)
    grid.add(9)
    engine = GridEngine(grid, cards_of(setup.method, setup.profiles), RUN, timeout=SOON)
    engine.hello(5)
    assert engine.rejected_nodes == {7005: "node 7005 announces the partition 9; this run has the partitions 0 to 3"}
    assert sorted(engine.nodes) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("architecture", "bert-2x8", "its architecture is 'bert-2x8', and this run needs 'linear'"),
        ("base", "beef", "its base model's weights is 'beef'"),
        ("layout", "0", "its adapter names and shapes is '0'"),
        ("task", "causal-lm", "its task is 'causal-lm', and this run needs 'toy'"),
        ("num_examples", 7, "its number of training examples is 7, and this run needs 12"),
        ("budget", 4, "its budget in layers is 4, and this run needs 1"),
        ("exchanges", ["embed"], "its exchanges of the method is ['embed'], and this run needs ['fit']"),
        ("sections", {"training": "x"}, "its run file differs in training"),
        ("sections", "none", "its run file differs in training"),
    ],
)
def test_a_client_that_does_not_match_is_refused_by_name_before_training(key, value, reason, tmp_path):
    setup = fedavg_setup()
    wanted = {p.id: card(p, ("fit",), sections={"training": {"steps": 3}}) for p in setup.profiles}
    cards = {**wanted, 2: {**wanted[2], key: value}}
    sites = {id: Site(id, client, setup.method, cards[id]) for id, client in setup.clients.items()}
    grid = InProcessGrid(client_app(lambda partition, node: sites[partition], tmp_path), 4)
    engine = GridEngine(grid, wanted, RUN, timeout=SOON)
    with pytest.raises(ConfigError) as refused:
        engine.hello(5)
    assert str(refused.value).startswith("refused before training: client 2: ")
    assert reason in str(refused.value)
    assert all(kind == "query.hello" for kind, _ in grid.calls)


# Who may hold up or veto the start ------------------------------------------------------------


def answering(setup, folder, wrong=None, **more):
    """An engine for which two of four clients are enough; ``wrong(message, reply)`` is on the way of what nodes say."""
    engine, grid = engine_of(setup, folder, meddle=wrong, **{"timeout": 60, "enough": lambda orders: 2, **more})
    return engine, grid


def test_a_client_that_says_no_or_does_not_fit_is_told_by_name_and_the_others_begin(tmp_path):
    setup = fedavg_setup()
    wanted = cards_of(setup.method, setup.profiles)
    cards = {**wanted, 2: {**wanted[2], "task": "other"}}

    def join(partition, node):
        if partition == 1:
            raise ConfigError("data.source = '/srv/x.csv': no\nsuch file")
        return Site(partition, setup.clients[partition], setup.method, cards[partition])

    for enough in (2, 3):
        grid = InProcessGrid(client_app(join, tmp_path / str(enough)), 4)
        engine = GridEngine(grid, wanted, RUN, timeout=60, poll=0.05, enough=lambda orders, enough=enough: enough)
        if enough == 3:
            with pytest.raises(ConfigError) as caught:
                engine.hello(60)  # at once: everyone has spoken
            assert len(caught.value.problems) == 2
        else:
            engine.hello(60)
            assert sorted(engine.nodes) == [0, 3]
            (done,) = played(setup, engine, 1)
            assert sorted(done.traffic[0].dropped) == [1, 2]
            assert done.traffic[0].dropped[1] == "client 1: data.source = '/srv/x.csv': no such file"
        assert "its task is 'other'" in engine.refused[2]


@pytest.mark.parametrize("stranger", [False, True])
def test_a_node_that_never_says_who_it_is_holds_nobody_up_longer_than_it_may(tmp_path, stranger):
    setup = fedavg_setup()
    silent: list[int] = []

    def mute(order, reply):
        return None if order.metadata.dst_node_id in silent else reply

    engine, grid = answering(setup, tmp_path, mute, grace=0.3, timeout=SOON)
    silent.append(grid.add(2) if stranger else FIRST_NODE)  # partition 3 is on the first node
    engine.hello(600)
    assert sorted(engine.nodes) == ([0, 1, 2, 3] if stranger else [0, 1, 2])
    (done,) = played(setup, engine, 1)
    assert done.traffic[0].dropped == ({} if stranger else {3: "no node holds partition 3"})


def test_without_a_grace_the_start_waits_its_time_and_then_goes_on_with_those_who_are_there(tmp_path):
    setup = fedavg_setup()
    engine, grid = answering(setup, tmp_path)
    grid.contexts.pop(FIRST_NODE)
    engine.hello(0.5)
    assert sorted(engine.nodes) == [0, 1, 2]
    few, grid = answering(setup, tmp_path)
    for node in [*grid.contexts][:3]:
        grid.contexts.pop(node)
    with pytest.raises(RoundError, match=r"3 of 4 clients did not join within 0.5 s \(partitions 1, 2, 3\)"):
        few.hello(0.5)


def keyed(setup, folder, holders):
    """A federation in which ``holders`` are the partitions that nodes claim, each with the name of its key."""
    names = sorted({name for _, name in holders if name})
    pairs = {name: node_key(folder / "keys", name) for name in {*names, "k0", "k1", "k2", "k3"}}
    grid = InProcessGrid(app_of(setup.method, setup.profiles, setup.clients, folder), 0)
    for partition, name in holders:
        own = {"key": str(pairs[name].key)} if name else {}
        grid.contexts[grid.add(partition)].node_config.update(own)
    public = {client: pairs[f"k{client}"].public.read_text().strip() for client in range(4)}
    cards = cards_of(setup.method, setup.profiles)
    return GridEngine(grid, cards, RUN, timeout=60, poll=0.05, keys=public), grid


def test_a_partition_goes_to_the_node_with_its_key_whoever_comes_first(tmp_path):
    setup = fedavg_setup()
    holders = [(2, "thief"), (2, None), (2, "k1"), (0, "k0"), (1, "k1"), (2, "k2"), (3, "k3")]
    engine, _ = keyed(setup, tmp_path, holders)
    engine.hello(60)
    assert engine.nodes == {0: 7004, 1: 7005, 2: 7006, 3: 7007}
    assert sorted(engine.rejected_nodes) == [7001, 7002, 7003]
    assert all(
        "does not prove possession of the key in network.node_keys" in said for said in engine.rejected_nodes.values()
    )
    assert len(played(setup, engine)) == 3


def test_what_a_node_signed_is_of_this_hello_and_this_node_alone(tmp_path):
    pair = node_key(tmp_path, "k")
    public, card_ = pair.public.read_text(), {"partition": 0, "exchanges": ["fit"]}
    given = signature(pair.key, card_, "n1", RUN, 5)
    assert is_signed(public, given, card_, "n1", RUN, 5)
    for changed in (
        (public, given, {**card_, "partition": 1}, "n1", RUN, 5),
        (public, given, card_, "n2", RUN, 5),
        (public, given, card_, "n1", RUN[:-1], 5),
        (public, given, card_, "n1", RUN, 6),
        (node_key(tmp_path, "other").public.read_text(), given, card_, "n1", RUN, 5),
        (public, None, card_, "n1", RUN, 5),
        (public, "\u00e9" * 9, card_, "n1", RUN, 5),
        (public, given * 99, card_, "n1", RUN, 5),
        ("not a key", given, card_, "n1", RUN, 5),
    ):
        assert not is_signed(*changed)
    (tmp_path / "broken").write_text("x")
    for name, words in (("broken", "no private key without"), ("absent", "cannot be read")):
        with pytest.raises(ConfigError, match=words):
            signature(tmp_path / name, card_, "n1", RUN, 5)


def test_cards_of_the_same_client_match_and_differ_with_every_shape():
    profile, layout = fedavg_setup().profiles[0], small().layout
    assert mismatches(card(profile, ("fit",)), card(profile, ("fit",))) == []
    assert mismatches({}, card(profile, ("fit",)))
    other = replace(layout, shapes={name: (*shape, 1) for name, shape in layout.shapes.items()})
    left, right = (card(profile, ("fit",), layout=one) for one in (layout, other))
    assert [problem.split(" is ")[0] for problem in mismatches(left, right)] == ["its adapter names and shapes"]


def test_failures_come_in_client_order_too(tmp_path):
    setup = fedavg_setup()
    engine, _ = engine_of(setup, tmp_path, meddle=lambda o, r: None if of(o, 0) or of(o, 3) else r)
    engine.hello(5)
    exchange = setup.method.exchanges[0]
    state = setup.method.init(Rng(5))
    orders = exchange.ask(state, Turn(0, setup.profiles, Rng(1)))
    replies = [*engine.send(exchange, dict(reversed([*orders.items()])))]
    assert [reply.client for reply in replies] == [0, 1, 2, 3]
    assert [reply.client for reply in replies if isinstance(reply, Failure)] == [0, 3]
