"""A client's memory on its disk: a repeated order starts from the same memory as the first time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.core.errors import RunError
from fedquilt.engine.flower.memory_store import MemoryStore


def memory(number: float) -> dict:
    return {"params": {"w": torch.tensor([number])}, "visits": number}


def test_a_memory_is_there_for_the_next_step_and_for_a_new_process(tmp_path):
    MemoryStore(tmp_path / "c").keep((0, 0), memory(1))
    store = MemoryStore(tmp_path / "c")
    assert store.before((0, 1))["visits"] == store.before((4, 0))["visits"] == store.newest["visits"] == 1
    assert torch.equal(store.before((1, 0))["params"]["w"], torch.tensor([1.0]))


def test_a_method_without_memory_leaves_no_files(tmp_path):
    store = MemoryStore(tmp_path / "c")
    for number in range(3):
        assert store.before((number, 0)) == {}
        store.keep((number, 0), {})
    assert not (tmp_path / "c").exists()


def test_an_order_that_comes_again_starts_from_the_memory_before_it(tmp_path):
    store = MemoryStore(tmp_path / "c")
    for step in [(0, 0), (0, 1), (2, 0), (2, 1)]:
        store.keep(step, memory(step[0] * 10 + step[1]))
    assert store.before((2, 1))["visits"] == 20
    assert store.before((2, 0))["visits"] == 1  # the server went back to its last checkpoint
    store.keep((2, 0), memory(20))
    assert store.before((2, 1))["visits"] == 20
    assert store.newest["visits"] == 20


def test_the_first_round_can_come_again_too(tmp_path):
    store = MemoryStore(tmp_path / "c")
    store.keep((0, 0), memory(1))
    assert store.before((0, 0)) == {}


def test_an_order_of_a_round_long_gone_is_refused(tmp_path):
    store = MemoryStore(tmp_path / "c")
    for number in range(5):
        store.keep((number, 0), memory(number))
    with pytest.raises(RunError, match="the order is of round 3, but this client has gone on to round 5"):
        store.before((2, 0))


def test_only_what_may_be_needed_again_stays_on_the_disk(tmp_path):
    store = MemoryStore(tmp_path)
    for number in range(6):
        store.keep((number, 0), memory(number))
        store.keep((number, 1), memory(number + 0.5))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"memory-{n}.safetensors" for n in ("000004-1", "000005-0", "000005-1")] + ["memory.json"]


def test_a_damaged_or_missing_memory_is_named(tmp_path):
    store = MemoryStore(tmp_path)
    store.keep((0, 0), memory(1))
    (file,) = tmp_path.glob("*.safetensors")
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(RunError, match=r"memory-000000-0\.safetensors: damaged"):
        store.before((1, 0))
    file.unlink()
    with pytest.raises(RunError, match=r"cannot be read \(No such file.*restore this client\'s memory"):
        store.before((1, 0))


def test_a_disk_that_refuses_is_told_and_the_old_memory_stays(tmp_path, monkeypatch):
    store = MemoryStore(tmp_path)
    store.keep((0, 0), memory(1))

    def full(path, content, **more):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("fedquilt.engine.flower.memory_store.write_bytes", full)
    with pytest.raises(RunError, match="No space left on device"):
        store.keep((1, 0), memory(2))
    assert store.newest["visits"] == 1


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_whatever_the_server_repeats_a_step_always_starts_from_the_same_memory(tmp_path_factory, data):
    """A run of steps with returns to the beginning of the round (a crash) or of the same order (a repeat)."""
    store, exchanges = MemoryStore(tmp_path_factory.mktemp("store") / "c"), data.draw(st.integers(1, 3))
    steps = [(number, e) for number in range(4) for e in range(exchanges)]
    started: dict = {}
    at = 0
    for _ in range(14):
        if at == len(steps):
            break
        step = steps[at]
        before = store.before(step).get("visits", 0)
        assert started.setdefault(step, before) == before
        store.keep(step, memory(before + 1))
        move = data.draw(st.sampled_from(["on", "on", "again", "round"]))
        at = {"on": at + 1, "again": at, "round": at - step[1]}[move]
