"""The run folder appears complete, and its checkpoints survive any interruption."""

from __future__ import annotations

import contextlib
import os
import stat

import pytest
import torch
from run_folders import CONFIG, Disk, Killed, create, finish, no_space, same

from fedquilt.core.errors import RunError
from fedquilt.record import (
    Record,
    checkpoint_files,
    manifest,
    read_config,
    read_environment,
    read_partition,
    read_result,
    read_rounds,
)
from fedquilt.record.tree_bytes import tree_from_bytes


def test_create_writes_the_folder_that_reports_read(tmp_path):
    made = create(tmp_path / "runs" / "toy")
    assert read_config(made.folder) == CONFIG
    assert read_partition(made.folder) == {"digest": "d", "clients": []}
    assert read_environment(made.folder) == {"versions": {}, "format": 4}
    assert read_rounds(made.folder) == []
    assert read_result(made.folder) is None
    assert not made.has_checkpoint
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["toy"]


def test_create_takes_an_empty_folder_and_clears_an_earlier_failed_start(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / ".toy.creating").mkdir()
    (tmp_path / ".toy.creating" / "old").write_text("x")
    made = create(tmp_path / "toy")
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "checkpoint",
        "checkpoint.json",
        "config.json",
        "environment.json",
        "partition.json",
    ]


def test_create_refuses_a_folder_that_holds_something(tmp_path):
    made = create(tmp_path / "toy")
    with pytest.raises(RunError, match=r"exists and is not empty; continue .* fedquilt run --resume .*toy\nor choose"):
        create(made.folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("x")
    with pytest.raises(RunError, match="exists and is not empty; choose another name or output") as caught:
        create(tmp_path / "other")
    assert "--resume" not in str(caught.value)
    with pytest.raises(RunError, match="is a file, not a folder"):
        create(tmp_path / "other" / "letter.txt")


def test_open_refuses_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match="no such run folder"):
        Record.open(tmp_path / "none")
    with pytest.raises(RunError, match=r"not a run folder, it has no config\.json"):
        Record.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json: damaged, not JSON"):
        Record.open(tmp_path)


def test_a_checkpoint_comes_back_whole(tmp_path):
    made = create(tmp_path / "toy")
    state = {"params": {"a": torch.randn(2, 3)}, "round": 3, "odds": [0.1, float("nan")]}
    memories = {7: {"params": {"b": torch.ones(2, dtype=torch.bfloat16)}}, 0: {}}
    made.save_checkpoint(4, state, memories)
    next_round, back, own = Record.open(made.folder).load_checkpoint()
    assert next_round == 4
    assert same(back, state)
    assert own.keys() == memories.keys()
    assert all(same(own[client], memories[client]) for client in memories)


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path):
    made = create(tmp_path / "toy")
    with pytest.raises(RunError, match="no checkpoint, because the run ended before its first round"):
        made.load_checkpoint()


def test_only_changed_memories_are_written_and_old_files_go(tmp_path, monkeypatch):
    made = create(tmp_path / "toy")
    written = []
    write = checkpoint_files.write_pieces

    def noting(where, label, pieces, name, **how):
        content = [*pieces]
        if label == "memories":
            written.append(sorted(map(int, tree_from_bytes(b"".join(content)))))
        write(where, label, content, name, **how)

    monkeypatch.setattr(checkpoint_files, "write_pieces", noting)
    first = {0: {"x": torch.zeros(2)}, 1: {"x": torch.ones(2)}}
    made.save_checkpoint(1, {"t": 0}, first)
    second = {0: first[0], 1: {"x": torch.full((2,), 2.0)}}
    made.save_checkpoint(2, {"t": 1}, second)
    assert written == [[0, 1], [1]]
    assert len(list((made.folder / "checkpoint").iterdir())) == 4  # of it and of the one before
    made.save_checkpoint(3, {"t": 1}, second)
    assert written == [[0, 1], [1]]

    resumed = Record.open(made.folder)
    _, _, memories = resumed.load_checkpoint()
    resumed.save_checkpoint(4, {"t": 2}, {**memories, 5: {}})
    assert written == [[0, 1], [1], [5]]
    _, state, memories = Record.open(made.folder).load_checkpoint()
    assert state == {"t": 2}
    assert sorted(memories) == [0, 1, 5]
    assert float(memories[1]["x"][0]) == 2.0


@pytest.mark.parametrize("prefix", ["state", "memories"])
def test_a_damaged_or_missing_file_is_named(tmp_path, prefix):
    made = create(tmp_path / "toy")
    made.save_checkpoint(1, {"a": torch.zeros(4)}, {3: {"b": torch.ones(4)}})
    (path,) = (made.folder / "checkpoint").glob(f"{prefix}-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"{path.name}: damaged, its sha256 is not the one that was noted"):
        Record.open(made.folder).load_checkpoint()
    path.unlink()
    with pytest.raises(RunError, match=rf"{path.name}: cannot be read \(No such file"):
        Record.open(made.folder).load_checkpoint()


def test_a_manifest_of_another_format_or_a_damaged_one_is_refused(tmp_path, monkeypatch):
    made = create(tmp_path / "toy")
    made.save_checkpoint(12, {}, {})
    path = made.folder / "checkpoint.json"
    whole = path.read_bytes()
    for content in (whole.replace(b'"next_round": 12', b'"next_round": 13'), whole.replace(b"1", b"2", 1)):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"checkpoint\.json: damaged, its sha256 is not .* noted in it; restore it"):
            Record.open(made.folder)
    for content in (b"", whole[:-9], b"[]", b"{}", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"checkpoint\.json: damaged, it is no list of what the run holds"):
            Record.open(made.folder)
    monkeypatch.setattr(manifest, "FORMAT", 99)
    manifest.write_manifest(made.folder, manifest.Manifest({}))
    monkeypatch.undo()
    with pytest.raises(RunError, match="format 99, but this version of fedquilt reads format 4; take a newer one"):
        Record.open(made.folder)


@pytest.mark.parametrize("failure", [Killed, no_space])
def test_whatever_step_fails_the_old_or_the_new_checkpoint_is_there_and_never_a_mix(tmp_path, failure):
    states = [{"t": t, "a": torch.full((3,), float(t))} for t in range(3)]
    memories = [{c: {"t": t, "b": torch.full((2,), float(10 * t + c))} for c in range(2)} for t in range(3)]
    outcomes = set()
    for steps in range(200):
        folder = tmp_path / str(steps)
        made = create(folder)
        made.save_checkpoint(1, states[1], memories[1])
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, steps, failure)
            message = ""
            try:
                made.save_checkpoint(2, states[2], memories[2])
            except (Killed, RunError) as error:
                message = str(error)
        resumed = Record.open(folder)
        next_round, state, own = resumed.load_checkpoint()
        outcomes.add(next_round)
        assert f"the checkpoint of round {next_round} is intact" in message or not message
        assert same(state, states[next_round])
        assert own.keys() == {0, 1}
        assert all(same(own[c], memories[next_round][c]) for c in own)
        # the run goes on from there, and what the failure left behind is cleared
        resumed.save_checkpoint(3, states[0], {c: memories[0][c] for c in own})
        assert Record.open(folder).load_checkpoint()[0] == 3
        assert len(list((folder / "checkpoint").iterdir())) == 4  # of it and of the one before
        if disk.left >= 0:
            break
    else:
        pytest.fail("the save never came to its end")
    assert steps > 10
    assert outcomes == {1, 2}


def test_create_stopped_at_any_step_leaves_no_half_run(tmp_path):
    for steps in range(100):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, steps, Killed)
            with contextlib.suppress(Killed):
                create(tmp_path / "toy")
        if not (tmp_path / "toy").exists():
            with pytest.raises(RunError, match="no such run folder"):
                Record.open(tmp_path / "toy")
            continue
        assert Record.open(tmp_path / "toy").config == CONFIG
        assert read_partition(tmp_path / "toy")["digest"] == "d"
        if disk.left >= 0:
            break
        (tmp_path / "toy").rename(tmp_path / f"toy-{steps}")
    assert steps > 5


def test_resuming_drops_the_rounds_after_the_checkpoint_and_a_torn_line(tmp_path):
    made = create(tmp_path / "toy")
    for number in range(3):
        finish(made, {"round": number})
    made.append_round({"round": 3})
    with (made.folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "los')
    resumed = Record.open(made.folder)
    resumed.truncate_rounds()
    assert len((made.folder / "rounds.jsonl").read_bytes().splitlines()) == 3
    finish(resumed, {"round": 3, "again": True})
    assert read_rounds(made.folder) == [{"round": 0}, {"round": 1}, {"round": 2}, {"round": 3, "again": True}]


def test_no_round_stands_twice(tmp_path):
    made = create(tmp_path / "toy")
    finish(made, {"round": 0})
    for number in (0, 2):
        with pytest.raises(ValueError, match=f"round {number} where round 1 comes next"):
            made.append_round({"round": number})
    other = Record.open(made.folder)  # as another process would
    finish(other, {"round": 1})
    with pytest.raises(
        RunError, match=r"rounds\.jsonl: has 26 bytes, but this run has written 13; another process has changed"
    ):
        made.append_round({"round": 1})
    assert [line["round"] for line in read_rounds(made.folder)] == [0, 1]


def test_truncating_before_the_first_round_is_fine(tmp_path):
    made = create(tmp_path / "toy")
    made.truncate_rounds()
    assert read_rounds(made.folder) == []


def state(number):
    return {"t": number, "a": torch.full((3,), float(number))}


@pytest.mark.parametrize(
    ("keep", "finite", "kept"),
    [
        (2, [None] * 6, [5, 6]),
        (3, [True] * 6, [4, 5, 6]),
        (2, [True, True, False, False, False, None], [2, 5, 6]),
        (2, [True, True, True, True, False, True], [5, 6]),
    ],
)
def test_the_last_checkpoints_are_kept_and_the_last_one_that_was_finite(tmp_path, keep, finite, kept):
    made = create(tmp_path / "toy", {**CONFIG, "checkpoints": {"keep": keep}})
    same_memory = {"of": 0}
    for number in range(6):
        finish(made, {"round": number}, state(number), {0: same_memory, 1: {"of": number}}, finite[number])
    assert list(made.kept) == kept
    for number in kept:
        next_round, back, memories = Record.open(made.folder).load_checkpoint(number)
        assert next_round == number
        assert same(back, state(number - 1))
        assert memories == {0: {"of": 0}, 1: {"of": number - 1}}
    assert len(list((made.folder / "checkpoint").iterdir())) == 2 * len(kept) + 1  # the memory of client 0 but once
    with pytest.raises(
        RunError, match=r"the checkpoint after 1 rounds is not kept; kept are those after .*5, 6 rounds"
    ):
        made.load_checkpoint(1)


def test_going_back_forgets_what_came_after_and_ends_in_the_same_folder(tmp_path):
    def played(name, *numbers):
        made = create(tmp_path / name, {**CONFIG, "checkpoints": {"keep": 4}})
        for number in numbers:
            finish(made, {"round": number}, state(number), {0: {"of": number}}, True)
        return made

    made, straight = played("back", 0, 1, 2, 3), played("straight", 0, 1)
    (made.folder / "adapters").mkdir()
    (made.folder / "adapters" / "x").write_text("of round 3")
    made.save_result({"rounds": 4})
    record = Record.open(made.folder)
    assert record.go_back(2) == 2
    assert read_result(made.folder) is None
    assert not (made.folder / "adapters").exists()
    assert read_rounds(made.folder) == [{"round": 0}, {"round": 1}]
    for name in ("checkpoint.json", "rounds.jsonl"):
        assert (made.folder / name).read_bytes() == (straight.folder / name).read_bytes()
    assert files_of(made.folder / "checkpoint") == files_of(straight.folder / "checkpoint")
    finish(record, {"round": 2}, state(2))
    record.save_result({"rounds": 3})
    Record.open(made.folder).check()
    assert Record.open(made.folder).go_back(0) == 3
    assert files_of(made.folder / "checkpoint") == {}
    assert read_rounds(made.folder) == []


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_lost_memories_are_noticed_before_and_while_a_run_goes_on(tmp_path):
    made = create(tmp_path / "toy")
    memory = {"b": torch.ones(4)}
    finish(made, {"round": 0}, memories={3: memory})
    (path,) = (made.folder / "checkpoint").glob("memories-*")
    content = path.read_bytes()
    path.unlink()
    for act in (Record.open(made.folder).check, lambda: made.save_checkpoint(2, {}, {3: memory})):
        with pytest.raises(RunError, match=rf"{path.name}: is lost; the checkpoint cannot be used without it; restore"):
            act()
    path.write_bytes(content[:-1])
    with pytest.raises(RunError, match=rf"{path.name}: damaged, it has \d+ bytes of \d+"):
        Record.open(made.folder).check()


def test_a_finished_run_answers_for_its_adapters(tmp_path):
    made = create(tmp_path / "toy")
    inside = made.folder / "adapters" / "global"
    inside.mkdir(parents=True)
    (inside / "a").write_text("weights")
    made.save_result({"rounds": 0})
    assert Record.open(made.folder).has_adapter("global")
    assert not Record.open(made.folder).has_adapter("client-001")
    (inside / "b").write_text("strange")
    with pytest.raises(
        RunError, match=r"adapters/global/b: does not belong to this run, checkpoint.json does not list it"
    ):
        Record.open(made.folder).has_adapter("global")
    (inside / "b").unlink()
    (inside / "a").write_text("")
    with pytest.raises(RunError, match=r"adapters/global/a: damaged"):
        Record.open(made.folder).has_adapter("global")
    (inside / "a").unlink()
    with pytest.raises(RunError, match=r"adapters/global/a: cannot be read \(No such file"):
        Record.open(made.folder).has_adapter("global")


@pytest.mark.skipif(os.name == "nt", reason="other rights there")
def test_memories_are_for_their_owner_alone(tmp_path):
    made = create(tmp_path / "toy")
    made.save_checkpoint(1, {"t": 1}, {0: {"own": 1}})
    assert stat.S_IMODE((made.folder / "checkpoint").stat().st_mode) == 0o700
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (made.folder / "checkpoint").iterdir()]
    assert modes == [0o600, 0o600]
