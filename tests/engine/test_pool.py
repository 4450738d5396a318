"""Several processes that share the clients: the bits of one process, and no end without a reason."""

import errno
import multiprocessing
import os
import signal
import time

import pytest
import torch

from fedquilt.core.errors import RoundError, RunError, TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Failure, Order, Reply
from fedquilt.engine.pool import Pool


@pytest.fixture
def pool():
    made = []

    def start(work, number=2):
        made.append(Pool(number, work))
        return made[-1]

    yield start
    for one in made:
        one.close()


def order(*values, **settings):
    params = {"x": torch.tensor(values), "half": torch.tensor(values, dtype=torch.bfloat16)}
    return Order(params, settings, 3, Rng(5, ("round", 3)))


def test_what_goes_to_and_fro_is_exact_and_every_client_has_its_own_memory(pool):
    def work(exchange, client, order, memory):
        assert (exchange, order.round, order.rng) == ("fit", 3, Rng(5, ("round", 3)))
        new = {"visits": memory.get("visits", 0) + 1, "params": {"own": order.params["x"] * client}}
        return Reply(client, {"y": order.params["half"] + client}, 2.0, {"loss": 0.1 + client}, 3), new

    shared = pool(work, 3)
    memories = {client: {} for client in range(5)}
    for visit in (1, 2):
        shared.ask("fit", ((client, order(0.1, -2.5, kind="a"), memories[client]) for client in range(5)))
        for client in range(5):
            reply, memories[client] = shared.answer(client)
            assert reply.client == client
            assert reply.metrics == {"loss": 0.1 + client}
            assert reply.params["y"].dtype == torch.bfloat16
            assert torch.equal(reply.params["y"], torch.tensor([0.1, -2.5], dtype=torch.bfloat16) + client)
            assert memories[client]["visits"] == visit
            assert torch.equal(memories[client]["params"]["own"], torch.tensor([0.1, -2.5]) * client)


def test_clients_of_a_process_work_side_by_side_up_to_the_width(pool):
    def work(exchange, client, order, memory, *, fitting=None):
        return Failure(client, f"{os.getpid()} {'alone' if fitting is None else 'beside others'}"), {"of": client}

    shared = pool(work, 2)
    shared.ask("fit", ((client, order(1.0), {}) for client in range(7)), 3)
    told = [shared.answer(client) for client in range(7)]
    assert [memory["of"] for _, memory in told] == [*range(7)]
    processes = [reply.reason.partition(" ")[0] for reply, _ in told]
    assert processes[0::2] == [processes[0]] * 4
    assert processes[1::2] == [processes[1]] * 3
    alone = [client for client, (reply, _) in enumerate(told) if reply.reason.endswith("alone")]
    assert alone == [6]  # the fourth of the first process


def test_large_messages_in_both_directions_do_not_wait_for_each_other(pool):
    def work(exchange, client, order, memory):
        return Reply(client, {"y": order.params["x"] + 1}, 1.0), None

    shared = pool(work, 2)
    large = torch.zeros(300_000)
    shared.ask("fit", ((client, Order({"x": large}), {}) for client in range(12)))
    for client in range(12):
        reply, memory = shared.answer(client)
        assert bool((reply.params["y"] == 1).all())
        assert memory is None


def test_a_client_works_in_the_same_process_each_time(pool):
    def work(exchange, client, order, memory):
        return Failure(client, str(os.getpid())), None

    shared = pool(work, 3)
    seen = []
    for _ in range(2):
        shared.ask("fit", ((client, order(1.0), {}) for client in range(6)))
        seen.append([shared.answer(client)[0].reason for client in range(6)])
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 3
    assert str(os.getpid()) not in seen[0]


def test_a_process_that_dies_is_named_with_its_client(pool):
    def work(exchange, client, order, memory):
        if client == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return Failure(client, "fine"), None

    shared = pool(work)
    shared.ask("fit", ((client, order(1.0), {}) for client in range(6)))
    assert shared.answer(1)[0].reason == "fine"
    with pytest.raises(RoundError, match=r"process 2 of 2 ended by signal SIGKILL while client 3 worked in it"):
        shared.answer(3)


def test_errors_are_those_of_the_work(pool):
    def work(exchange, client, order, memory):
        if client:
            raise ZeroDivisionError("by nothing")
        raise TrainingError("loss is nan at step 3")

    shared = pool(work)
    shared.ask("fit", [(0, order(1.0), {})])
    with pytest.raises(TrainingError, match=r"^loss is nan at step 3$"):
        shared.answer(0)
    shared.ask("fit", [(1, order(1.0), {})])
    with pytest.raises(RuntimeError, match=r"client 1, in another process:\n(.|\n)*ZeroDivisionError: by nothing"):
        shared.answer(1)


def test_processes_that_the_system_refuses_are_named_and_the_others_end(monkeypatch):
    real, made = os.fork, []

    def refused():
        if len(made) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        made.append(None)
        return real()

    before = multiprocessing.active_children()
    monkeypatch.setattr(os, "fork", refused)
    with pytest.raises(RunError, match=r"^engine.processes = 4: process 3 cannot be started \(Resource temporarily"):
        Pool(4, lambda *_: None)
    assert multiprocessing.active_children() == before


def test_a_process_ends_quietly_when_nobody_is_left_to_answer(pool, capfd):
    def work(exchange, client, order, memory):
        time.sleep(0.2)
        return Failure(client, "late"), None

    shared = pool(work, 1)
    shared.ask("fit", [(0, order(1.0), {})])
    shared._ends[0].close()
    shared._processes[0].join(60)
    assert shared._processes[0].exitcode == 0
    assert capfd.readouterr().err == ""
