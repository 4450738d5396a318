"""Checkpoint files: a memory counts as saved only when the manifest names its file; few files, little waste."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import torch
from run_folders import create, make_format_3, no_space, same

from fedquilt.core.errors import RunError
from fedquilt.record import Record, checkpoint_files, folder
from fedquilt.record.tree_bytes import tree_from_bytes


def test_memories_of_a_checkpoint_that_no_manifest_names_are_written_again(tmp_path, monkeypatch):
    made = create(tmp_path / "toy")
    made.save_checkpoint(1, {"t": 1}, {0: {"x": torch.zeros(2)}})
    memories = {0: {"x": torch.ones(2)}}

    def refuse(*_):
        raise no_space()

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_manifest", refuse)
        with pytest.raises(RunError, match="No space left on device"):
            made.save_checkpoint(2, {"t": 2}, memories)
    made.go_back(1)  # deletes the files that the manifest does not name
    assert len(list((made.folder / "checkpoint").iterdir())) == 2
    made.save_checkpoint(2, {"t": 2}, memories)  # the same objects as in the checkpoint that failed
    number, state, loaded = Record.open(made.folder).load_checkpoint()
    assert (number, state) == (2, {"t": 2})
    assert torch.equal(loaded[0]["x"], memories[0]["x"])


def packs_of(made):
    return sorted((made.folder / "checkpoint").glob("memories-*"))


def one_memory(client, number):
    return {"of": client, "at": number, "x": torch.full((50,), float(number))}


def test_disk_space_and_files_stay_bounded_whoever_takes_part(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "MOST", 6)
    made, draws, memories = create(tmp_path / "toy"), random.Random(1), {}
    for number in range(120):
        # at first ever new clients, then the same ones again, one of them in every round
        cohort = range(4 * number, 4 * number + 4) if number < 40 else [0, *draws.sample(range(1, 160), 3)]
        memories |= {client: one_memory(client, number) for client in cohort}
        made.save_checkpoint(number + 1, {"t": number}, memories)
        held = [len(tree_from_bytes(path.read_bytes())) for path in packs_of(made)]
        assert len(held) <= 2 * checkpoint_files.MOST  # of this checkpoint and the one before
        assert sum(held) <= 2 * 2 * len(memories)
        if number % 10 == 0:  # also of a run that goes on
            made = Record.open(made.folder)
            memories = made.load_checkpoint()[2]
            assert same(dict(sorted(memories.items())), {c: one_memory(c, memories[c]["at"]) for c in sorted(memories)})
            assert all(memories[client]["at"] == number for client in cohort)
    assert len(memories) == 160


def test_a_round_writes_what_it_has_changed(tmp_path, monkeypatch):
    made, memories = create(tmp_path / "toy"), {client: one_memory(client, 0) for client in range(1000)}
    made.save_checkpoint(1, {}, memories)
    before = {*packs_of(made)}
    made.save_checkpoint(2, {}, memories | {7: one_memory(7, 1), 8: one_memory(8, 1)})
    (new,) = {*packs_of(made)} - before
    assert tree_from_bytes(new.read_bytes()).keys() == {"7", "8"}
    assert (made.folder / "checkpoint.json").stat().st_size < 3000


def test_a_tensor_that_clients_share_is_on_disk_once(tmp_path):
    shift = torch.ones(100_000)
    made = create(tmp_path / "toy")
    made.save_checkpoint(1, {}, {client: {"base": {"version": 1, "shift": {"q": shift}}} for client in range(10)})
    (pack,) = packs_of(made)
    assert pack.stat().st_size < 1.1 * shift.nbytes
    memories = Record.open(made.folder).load_checkpoint()[2]
    assert memories[3]["base"]["shift"]["q"] is memories[9]["base"]["shift"]["q"]
    assert torch.equal(memories[3]["base"]["shift"]["q"], shift)


def test_a_run_with_a_file_for_each_memory_goes_on(tmp_path):
    made = create(tmp_path / "toy")
    memories = {client: one_memory(client, 0) for client in range(3)}
    made.save_checkpoint(1, {"t": 0}, memories)
    make_format_3(made)
    old = Record.open(made.folder)
    old.check()
    number, state, loaded = old.load_checkpoint()
    assert (number, state) == (1, {"t": 0})
    assert same(loaded, memories)
    old.save_checkpoint(2, {"t": 1}, loaded | {1: one_memory(1, 1)})
    assert len([*(made.folder / "checkpoint").glob("client-*")]) == 3  # of the checkpoint before, which is kept
    assert same(Record.open(made.folder).load_checkpoint(1)[2], memories)
    going = Record.open(made.folder)
    loaded = going.load_checkpoint()[2]
    assert same(loaded, memories | {1: one_memory(1, 1)})
    going.save_checkpoint(3, {"t": 2}, loaded)
    assert not [*(made.folder / "checkpoint").glob("client-*")]


def test_a_memory_that_is_gone_does_not_come_back(tmp_path):
    made, memories = create(tmp_path / "toy"), {client: one_memory(client, 0) for client in range(4)}
    made.save_checkpoint(1, {}, memories)
    del memories[2]
    made.save_checkpoint(2, {}, memories)
    assert Record.open(made.folder).load_checkpoint()[2].keys() == {0, 1, 3}


def test_a_checkpoint_is_written_without_a_copy_of_it_in_memory(tmp_path):
    made = create(tmp_path / "toy")
    made.save_checkpoint(1, {"t": 1}, {})  # what is imported on the way
    memories = {client: {"x": torch.full((2**20,), float(client))} for client in range(4)}  # 16 MB
    tracemalloc.start()
    made.save_checkpoint(2, {"t": 2}, memories)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert same(Record.open(made.folder).load_checkpoint()[2], memories)
