"""The embedded engine: order of replies, memories, and progress."""

from dataclasses import replace

import pytest
import torch
from small_federation import small

from fedquilt.core.errors import TrainingError
from fedquilt.core.method import Exchange
from fedquilt.core.types import Failure, Order, Reply
from fedquilt.engine.local import LocalEngine

LOG: list = []


def exchange(work, name="fit") -> Exchange:
    return Exchange(name, lambda state, turn: {}, work, lambda state, replies: state)


def counting(client, order, memory):
    LOG.append(client)
    return Reply(client, {"x": torch.ones(1)}, 1.0), {"visits": memory.get("visits", 0) + 1}


def orders(*clients):
    return {client: Order({}) for client in clients}


@pytest.fixture(autouse=True)
def _fresh():
    LOG.clear()


def test_replies_come_in_client_order_whatever_the_order_of_orders():
    engine = LocalEngine({k: k for k in range(12)})
    assert [reply.client for reply in engine.send(exchange(counting), orders(10, 2, 0, 11, 1))] == [0, 1, 2, 10, 11]
    assert LOG == [0, 1, 2, 10, 11]


def test_each_reply_is_made_when_it_is_asked_for():
    replies = LocalEngine({k: k for k in range(3)}).send(exchange(counting), orders(0, 1, 2))
    assert LOG == []
    next(replies)
    assert LOG == [0]
    next(replies)
    assert LOG == [0, 1]


def test_memory_is_kept_for_each_client_over_exchanges_and_never_handed_to_another():
    engine = LocalEngine({k: k for k in range(3)})
    list(engine.send(exchange(counting), orders(0, 1)))
    list(engine.send(exchange(counting), orders(1, 2)))
    assert engine.memories == {0: {"visits": 1}, 1: {"visits": 2}, 2: {"visits": 1}}


def test_it_goes_on_from_given_memories_and_leaves_the_callers_map_alone():
    given = {1: {"visits": 5}}
    engine = LocalEngine({k: k for k in range(3)}, given)
    list(engine.send(exchange(counting), orders(0, 1)))
    assert engine.memories == {0: {"visits": 1}, 1: {"visits": 6}}
    assert given == {1: {"visits": 5}}


def test_an_empty_memory_is_not_kept():
    engine = LocalEngine({0: 0})
    list(engine.send(exchange(lambda client, order, memory: (Reply(client, {}, 1.0), {})), orders(0)))
    assert engine.memories == {}


def test_t31_a_failing_client_is_named_keeps_its_memory_and_the_others_go_on():
    """T31, the engine's side: an error, a tensor or a memory that is not finite."""
    nan = torch.full((1,), float("nan"))

    def work(client, order, memory):
        if client == 1:
            raise TrainingError("loss is nan at step 3")
        after = {"params": {"own": nan if client == 3 else torch.ones(1)}}
        return Reply(client, {"x": nan if client == 2 else torch.ones(1)}, 1.0), after

    before = {k: {"params": {"own": torch.zeros(1)}} for k in range(5)}
    engine = LocalEngine({k: k for k in range(5)}, before)
    replies = list(engine.send(exchange(work), orders(*range(5))))
    assert [(r.client, r.reason) for r in replies if isinstance(r, Failure)] == [
        (1, "loss is nan at step 3"),
        (2, "tensor 'x' is not finite"),
        (3, "the client's own tensor 'own' is not finite"),
    ]
    assert [reply.client for reply in replies] == list(range(5))
    assert {k: memory["params"]["own"].item() for k, memory in engine.memories.items()} == {
        0: 1,
        1: 0,
        2: 0,
        3: 0,
        4: 1,
    }


def test_what_is_not_the_users_to_mend_is_not_swallowed():
    def work(client, order, memory):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(LocalEngine({0: 0}).send(exchange(work), orders(0)))


def test_watch_is_told_after_every_client_even_one_that_failed():
    seen = []

    def work(client, order, memory):
        if client == 4:
            raise TrainingError("no")
        return counting(client, order, memory)

    engine = LocalEngine({k: k for k in range(9)}, watch=lambda *call: seen.append(call))
    list(engine.send(exchange(work, "probe"), orders(7, 2, 4)))
    assert seen == [("probe", 1, 3), ("probe", 2, 3), ("probe", 3, 3)]


def test_no_client_is_made_that_is_not_reached():
    one, asked = small().clients[0], set()

    class Made(dict):
        def __getitem__(self, client):
            asked.add(client)
            return replace(one, profile=replace(one.profile, id=client))

    engine = LocalEngine(Made.fromkeys(range(30)))
    engine.width = 3
    replies = engine.send(exchange(lambda client, order, memory: (Reply(client.id, {}, 1.0), {})), orders(*range(30)))
    assert [next(replies).client for _ in range(3)] == [0, 1, 2]
    assert asked == {0, 1, 2}
