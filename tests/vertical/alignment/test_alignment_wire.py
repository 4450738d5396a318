"""The alignment over Flower: the same rows as in one process, and no message from which an id could be told."""

from __future__ import annotations

import hashlib

import pytest

pytest.importorskip("flwr")
pytest.importorskip("private_set_intersection")

from aligned_parties import KEY, scene
from in_process_grid import FIRST_NODE, RUN, InProcessGrid, app_of, cards_of
from promises import Setup, play, same
from wire_audit import content_of, leaks, traces, unblinded

from fedquilt.core.errors import RoundError
from fedquilt.core.rng import Rng
from fedquilt.engine.flower.client import memory_folder
from fedquilt.engine.flower.memory_store import MemoryStore
from fedquilt.engine.flower.strategy import MethodStrategy
from fedquilt.vertical.alignment.blinding import keyed_hashes

FILES = [
    [f"patient-{number:04d}" for number in range(start, start + 60, step)] for start, step in ((0, 1), (9, 1), (0, 3))
]


def over_flower(setup: Setup, folder, num_rounds: int = 2):
    """The last state, the clients' memories and the content of every message in either direction."""
    messages: list[bytes] = []

    def listening(message, reply):
        messages.extend([content_of(message), content_of(reply)])
        return reply

    grid = InProcessGrid(
        app_of(setup.method, setup.profiles, setup.clients, folder), len(setup.profiles), meddle=listening
    )
    strategy = MethodStrategy(setup.method, setup.profiles, cards_of(setup.method, setup.profiles), Rng(5), run=RUN)
    *_, last = strategy.rounds(grid, num_rounds, state=setup.method.init(Rng(5).child("init")))
    memories = {client: MemoryStore(memory_folder(folder, RUN, client)).newest for client in setup.clients}
    return last, memories, messages


@pytest.mark.parametrize("kind", ["psi", "keyed-hash"])
def test_the_same_rows_as_in_one_process_and_no_id_on_the_wire(kind, tmp_path) -> None:
    last, memories, messages = over_flower(scene(kind, *FILES), tmp_path)
    alone = play(scene(kind, *FILES), num_rounds=2)
    assert same(alone.states[-1], last.state)
    assert all(same(alone.memories[client], memory) for client, memory in memories.items())
    assert len(last.state["alignment"]["rows"]) == len(set.intersection(*map(set, FILES))) > 10
    # a hello, three exchanges in the first round and one in each: a message and its reply for both clients
    assert len(messages) == 2 * 2 * (1 + 3 + 2)
    assert sum(map(len, messages)) > 60 * 32
    assert leaks(messages, {one for file in FILES for one in file}) == []


def test_keyed_hashes_are_on_the_wire_under_the_parties_key_alone(tmp_path) -> None:
    *_, messages = over_flower(scene("keyed-hash", *FILES), tmp_path)
    sent = b"".join(messages)
    assert all(one in sent for one in keyed_hashes(KEY, FILES[1]))
    assert not any(one in sent for one in keyed_hashes(b"", FILES[1]))
    assert KEY not in sent


def test_the_keys_of_private_set_intersection_stay_where_they_were_made(tmp_path) -> None:
    setup, keys = scene("psi", *FILES), []
    first = setup.method.exchanges[0]

    def work(client, order, memory):
        reply, after = first.work(client, order, memory)
        keys.append(bytes(after["aligning"]["key"].tolist()))
        return reply, after

    def merge(state, replies):
        merged = first.merge(state, replies)
        keys.append(bytes(merged["alignment"]["pending"]["key"].tolist()))
        return merged

    exchanges = (first._replace(work=work, merge=merge), *setup.method.exchanges[1:])
    *_, messages = over_flower(setup._replace(method=setup.method._replace(exchanges=exchanges)), tmp_path)
    assert len(set(keys)) == 3
    assert not any(key in message for key in keys for message in messages)


@pytest.mark.parametrize("number", range(26))
def test_the_audit_notices_every_trace_wherever_it_stands(number) -> None:
    one = "patient-0042"
    every = [*traces(one), *unblinded([one])]
    assert len(every) == 26
    message = b"\x00" * (number % 8) + b"noise" + every[number] + b"more"
    assert every[number] in leaks([b"", b"short", message], [one, "patient-0043"])


def test_the_audit_does_not_mistake_a_beginning_for_an_id() -> None:
    digest = hashlib.sha256(b"patient-0042").digest()
    assert leaks([b"patient-00", digest[:31], digest[:31] + b"\x00" * 8], ["patient-0042"]) == []


@pytest.mark.parametrize("lost", ["align_keys", "align_ids", "align_places"])
def test_a_first_round_that_failed_is_done_again_with_the_parties_old_memories(lost, tmp_path) -> None:
    setup = scene("psi", *FILES)

    def losing(message, reply):
        of_client = message.metadata.dst_node_id == FIRST_NODE  # the node of client 1
        return None if of_client and message.metadata.message_type == f"train.{lost}" else reply

    def run(meddle):
        app = app_of(setup.method, setup.profiles, setup.clients, tmp_path)
        cards = cards_of(setup.method, setup.profiles)
        strategy = MethodStrategy(setup.method, setup.profiles, cards, Rng(5), run=RUN)
        grid = InProcessGrid(app, len(setup.profiles), meddle=meddle)
        *_, last = strategy.rounds(grid, 1, timeout=0.2, state=setup.method.init(Rng(5).child("init")))
        return last

    with pytest.raises(RoundError, match=r"client 1: did not answer"):
        run(losing)
    last = run(None)
    alone = play(scene("psi", *FILES), num_rounds=1)
    assert same(alone.states[-1], last.state)
    for client in setup.clients:
        assert same(alone.memories[client], MemoryStore(memory_folder(tmp_path, RUN, client)).newest)
