"""Clients' works are held at their training, and go on in their order."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace

import pytest
from small_federation import small

from fedquilt.core.errors import TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order
from fedquilt.engine.batched import side_by_side


def works(scene, happened, *, fails=None):
    """For each client a work that trains twice and notes what happens."""

    def work(id, fitting):
        client = replace(scene.clients[id], fitting=fitting)
        for turn in range(2):
            happened.append((id, turn))
            if fails == (id, turn):
                raise RuntimeError("a defect")
            fitted = client.fit(Order({}, rng=Rng(1).child(id, turn)), None, [3])
        happened.append((id, 2))
        return fitted

    return [lambda fitting, id=id: work(id, fitting) for id in scene.clients]


def test_works_take_turns_in_their_order():
    happened = []
    done = side_by_side(works(small(), happened))
    assert happened == [(id, turn) for turn in range(3) for id in range(3)]
    assert [one.alone for one in done] == ["", "", ""]
    assert [one.result.num_examples for one in done] == [5, 8, 6]


def test_a_failure_reaches_its_own_client_alone():
    scene = small()
    scene.clients[1].train["labels"] = scene.clients[1].train["labels"][:0]
    told = []

    def caught(work):
        def run(fitting):
            try:
                return work(fitting).num_examples
            except TrainingError as error:
                told.append(str(error))
                return 0

        return run

    done = side_by_side([caught(work) for work in works(scene, [])])
    assert [one.result for one in done] == [5, 0, 6]
    assert told == ["the client has no training rows"]


@pytest.mark.parametrize("fails", [(0, 0), (1, 1), (2, 0)])
def test_a_defect_is_raised_and_ends_every_work(fails):
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="a defect"):
        side_by_side(works(small(), [], fails=fails))
    assert threading.active_count() == before


@pytest.mark.parametrize("turn", [0, 1])
def test_an_interrupt_leaves_no_thread_behind(turn):
    arrived = threading.Event()

    def interrupt(*signalled):
        arrived.set()
        raise KeyboardInterrupt

    def interrupted(happened):
        class Happened(list):
            def append(self, one):
                super().append(one)
                if one == (1, turn):  # while the engine waits for this client
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                    assert arrived.wait(60)

        return Happened(happened)

    before, happened = threading.active_count(), interrupted([])
    old = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side(works(small(), happened))
    finally:
        signal.signal(signal.SIGINT, old)
    assert threading.active_count() == before
    assert happened[-1] == (1, turn)
