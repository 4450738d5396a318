"""The run folder: exact trees, checkpoints that survive anything, and errors that say what to do."""

from __future__ import annotations

import builtins
import contextlib
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt import record
from fedquilt.core.errors import RunError
from fedquilt.record import (
    Record,
    environment,
    read_config,
    read_environment,
    read_partition,
    read_result,
    read_rounds,
    tree_from_bytes,
    tree_to_bytes,
    write_json,
)

CONFIG = {"name": "toy", "seed": 1, "output": "runs", "training": {"steps": 5, "learning_rate": 0.1}}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e8m0fnu,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint64,
    torch.bool,
]


def create(folder: Path) -> Record:
    return Record.create(folder, CONFIG, {"versions": {}}, {"digest": "d", "clients": []})


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def same(left, right) -> bool:
    """Equal in every bit and every type."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and raw(left) == raw(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right) if isinstance(left, float) else left == right


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    content = draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        content = bytes(byte & 1 for byte in content)
    flat = torch.tensor(list(content), dtype=torch.uint8).view(dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors()
keys = st.text(max_size=5) | st.sampled_from(["tensor", "dict", "float", "bytes", "a/b"])
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(keys, t, max_size=3), max_leaves=8)


@settings(deadline=None, max_examples=150)
@given(trees)
def test_a_tree_comes_back_in_the_same_bits_and_types(tree):
    content = tree_to_bytes(tree)
    assert same(tree_from_bytes(content), tree)
    assert tree_to_bytes(tree) == content


def test_views_shared_memory_and_gradients_are_no_obstacle():
    base = torch.arange(12.0).reshape(3, 4)
    tree = {
        "whole": base,
        "same": base,
        "column": base[:, 1],
        "turned": base.T,
        "wide": torch.tensor(2.0).expand(3, 2),
        "trained": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "empty": torch.empty(0, 3, dtype=torch.bfloat16),
        "number": torch.tensor(3, dtype=torch.int8),
    }
    back = tree_from_bytes(tree_to_bytes(tree))
    assert back["wide"].shape == (3, 2)
    assert not back["trained"].requires_grad
    for name, tensor in tree.items():
        assert torch.equal(back[name], tensor), name
        assert back[name].dtype == tensor.dtype
    assert base.is_contiguous()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [1, (2, 3)]}, r"tree\['a'\]\[1\] is a tuple, but a state or memory holds only .*; use a list"),
        ({"a": {1: 2}}, r"tree\['a'\]: the key 1 is a int; keys are strings, so write it as '1'"),
        ({"a": object()}, r"tree\['a'\] is a object, but a state or memory holds only dicts, lists, tensors"),
        ([torch.eye(2).to_sparse()], r"tree\[0\] is a tensor without plain dense values"),
        ([torch.empty(2, device="meta")], r"tree\[0\] is a tensor without plain dense values"),
    ],
)
def test_what_is_not_a_tree_is_refused_by_its_place(tree, message):
    with pytest.raises(TypeError, match=message):
        tree_to_bytes(tree)


def test_create_writes_the_folder_that_reports_read(tmp_path):
    made = create(tmp_path / "runs" / "toy")
    assert read_config(made.folder) == CONFIG
    assert read_partition(made.folder) == {"digest": "d", "clients": []}
    assert read_environment(made.folder) == {"versions": {}}
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


def test_open_names_the_keys_in_which_another_config_differs(tmp_path):
    made = create(tmp_path / "toy")
    assert Record.open(made.folder, CONFIG).config == CONFIG
    other = {"name": "toy", "seed": 2, "output": "elsewhere", "training": {"steps": 6, "learning_rate": 0.1, "new": 1}}
    with pytest.raises(RunError, match="this run was started from another config") as caught:
        Record.open(made.folder, other, ignored=("output",))
    text = str(caught.value)
    assert (
        "seed is 1 there and 2 now; training.new is None there and 1 now; training.steps is 5 there and 6 now;" in text
    )
    assert "output" not in text
    assert Record.open(made.folder, other, ignored=("output", "seed", "training")).folder == made.folder


def test_a_checkpoint_comes_back_whole(tmp_path):
    made = create(tmp_path / "toy")
    state = {"params": {"a": torch.randn(2, 3)}, "round": 3, "odds": [0.1, float("nan")]}
    memories = {7: {"params": {"b": torch.ones(2, dtype=torch.bfloat16)}}, 0: {}}
    made.save_checkpoint(4, state, memories, seed=1)
    next_round, back, own = Record.open(made.folder).load_checkpoint()
    assert next_round == 4
    assert same(back, state)
    assert own.keys() == memories.keys()
    assert all(same(own[client], memories[client]) for client in memories)
    manifest = json.loads((made.folder / "checkpoint.json").read_text())
    assert (manifest["seed"], manifest["next_round"]) == (1, 4)


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path):
    made = create(tmp_path / "toy")
    with pytest.raises(RunError, match="no checkpoint, because the run ended before its first round"):
        made.load_checkpoint()


def test_only_changed_memories_are_written_and_old_files_go(tmp_path, monkeypatch):
    made = create(tmp_path / "toy")
    written = []
    write = record._write
    monkeypatch.setattr(record, "_write", lambda path, content: (written.append(path.name), write(path, content)))
    first = {0: {"x": torch.zeros(2)}, 1: {"x": torch.ones(2)}}
    made.save_checkpoint(1, {"t": 0}, first, seed=1)
    assert sum(name.startswith("client-") for name in written) == 2
    written.clear()
    second = {0: first[0], 1: {"x": torch.full((2,), 2.0)}}
    made.save_checkpoint(2, {"t": 1}, second, seed=1)
    assert [name.split("-")[1] for name in written if name.startswith("client-")] == ["001"]
    assert len(list((made.folder / "checkpoint").iterdir())) == 3

    resumed = Record.open(made.folder)
    _, _, memories = resumed.load_checkpoint()
    written.clear()
    resumed.save_checkpoint(3, {"t": 2}, {**memories, 5: {}}, seed=1)
    assert [name.split("-")[1] for name in written if name.startswith("client-")] == ["005"]
    _, state, memories = Record.open(made.folder).load_checkpoint()
    assert state == {"t": 2}
    assert sorted(memories) == [0, 1, 5]
    assert float(memories[1]["x"][0]) == 2.0


@pytest.mark.parametrize("prefix", ["state", "client-003"])
def test_a_damaged_or_missing_file_is_named(tmp_path, prefix):
    made = create(tmp_path / "toy")
    made.save_checkpoint(1, {"a": torch.zeros(4)}, {3: {"b": torch.ones(4)}}, seed=1)
    (path,) = (made.folder / "checkpoint").glob(f"{prefix}-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"{path.name}: damaged, its sha256 is not the one in checkpoint\.json"):
        Record.open(made.folder).load_checkpoint()
    path.unlink()
    with pytest.raises(RunError, match=rf"{path.name}: cannot be read \(No such file"):
        Record.open(made.folder).load_checkpoint()


def test_a_checkpoint_from_another_config_is_refused(tmp_path):
    made = create(tmp_path / "toy")
    made.save_checkpoint(1, {}, {}, seed=1)
    write_json(made.folder / "config.json", {**CONFIG, "seed": 9})
    with pytest.raises(RunError, match="checkpoint from another config: seed is 1 there and 9 now; resume with"):
        Record.open(made.folder).load_checkpoint()


def test_a_manifest_of_another_format_is_refused(tmp_path):
    made = create(tmp_path / "toy")
    write_json(made.folder / "checkpoint.json", {"format": 99})
    with pytest.raises(RunError, match="format 99, but this version of fedquilt reads format 1"):
        Record.open(made.folder)


class Killed(BaseException):
    """Stands for kill -9: after it nothing of the process runs."""


class Disk:
    """Lets ``left`` steps on the disk happen (opening, writing, syncing, renaming, deleting), then none."""

    def __init__(self, monkeypatch, left: int, failure) -> None:
        self.left, self.failure = left, failure
        monkeypatch.setattr(record, "open", self.open, raising=False)
        for name in ("replace", "fsync"):
            monkeypatch.setattr(record.os, name, self.guarded(getattr(os, name)))
        monkeypatch.setattr(Path, "unlink", self.guarded(Path.unlink))

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.failure()

    def guarded(self, function):
        def called(*arguments, **keywords):
            self.step()
            return function(*arguments, **keywords)

        return called

    def open(self, path, mode):
        self.step()
        file = builtins.open(path, mode)  # noqa: SIM115 - the handle below closes it
        write = file.write

        class Handle:
            def __enter__(inner):
                return inner

            def __exit__(inner, *error):
                file.close()

            def write(inner, content):
                write(content[: len(content) // 2])  # what was on its way when the power went
                file.flush()
                self.step()
                return write(content[len(content) // 2 :])

            flush, fileno = file.flush, file.fileno

        return Handle()


def no_space():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failure", [Killed, no_space])
def test_whatever_step_fails_the_old_or_the_new_checkpoint_is_there_and_never_a_mix(tmp_path, failure):
    states = [{"t": t, "a": torch.full((3,), float(t))} for t in range(3)]
    memories = [{c: {"t": t, "b": torch.full((2,), float(10 * t + c))} for c in range(2)} for t in range(3)]
    outcomes = set()
    for steps in range(200):
        folder = tmp_path / str(steps)
        made = create(folder)
        made.save_checkpoint(1, states[1], memories[1], seed=1)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, steps, failure)
            message = ""
            try:
                made.save_checkpoint(2, states[2], memories[2], seed=1)
            except (Killed, RunError) as error:
                message = str(error)
        resumed = Record.open(folder)
        next_round, state, own = resumed.load_checkpoint()
        outcomes.add(next_round)
        assert f"the checkpoint of round {next_round - 1} is whole" in message or not message
        assert same(state, states[next_round])
        assert own.keys() == {0, 1}
        assert all(same(own[c], memories[next_round][c]) for c in own)
        # the run goes on from there, and what the failure left behind is cleared
        resumed.save_checkpoint(3, states[0], {c: memories[0][c] for c in own}, seed=1)
        assert Record.open(folder).load_checkpoint()[0] == 3
        assert len(list((folder / "checkpoint").iterdir())) == 3
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


@pytest.mark.parametrize(
    ("code", "reason", "advice"),
    [
        (errno.ENOSPC, "No space left on device", "free some space"),
        (errno.EROFS, "Read-only file system", "make the folder writable"),
        (errno.EACCES, "Permission denied", "make the folder writable"),
        (errno.EIO, "Input/output error", "see to the disk"),
    ],
)
def test_a_disk_that_refuses_gives_one_clear_message(tmp_path, monkeypatch, code, reason, advice):
    made = create(tmp_path / "toy")

    def refuse(*_):
        raise OSError(code, os.strerror(code), "some.part")

    with monkeypatch.context() as patch:
        patch.setattr(record, "open", refuse, raising=False)
        with pytest.raises(RunError, match="there is no checkpoint yet"):
            made.append_round({"round": 0})
    made.save_checkpoint(5, {}, {}, seed=1)
    monkeypatch.setattr(record, "open", refuse, raising=False)
    tail = f"cannot be written ({reason}); the checkpoint of round 4 is whole; {advice}, then continue with: "
    for act, name in (
        (lambda: made.append_round({"round": 5}), "rounds.jsonl"),
        (lambda: made.save_checkpoint(6, {}, {}, seed=1), "checkpoint"),
        (lambda: made.save_result({}), "result.json"),
        (lambda: made.truncate_rounds(5), "rounds.jsonl"),
    ):
        with pytest.raises(RunError) as caught:
            act()
        assert str(caught.value) == f"{made.folder / name}: {tail}fedquilt run --resume {made.folder}"
    with pytest.raises(RunError, match=r"no run was started; .*, then start the run again"):
        create(tmp_path / "second")


def test_rounds_are_lines_and_nan_is_null(tmp_path):
    made = create(tmp_path / "toy")
    made.append_round({"round": 0, "loss": float("nan"), "list": [float("inf"), 1.5], "clients": {3: {"x": 1}}})
    made.append_round({"round": 1, "tensor": torch.tensor([1.0, float("nan")]), "pair": (1, 2)})
    assert read_rounds(made.folder) == [
        {"round": 0, "loss": None, "list": [None, 1.5], "clients": {"3": {"x": 1}}},
        {"round": 1, "tensor": [1.0, None], "pair": [1, 2]},
    ]
    assert len((made.folder / "rounds.jsonl").read_text().splitlines()) == 2


def test_resuming_drops_the_rounds_after_the_checkpoint_and_a_torn_line(tmp_path):
    made = create(tmp_path / "toy")
    for number in range(4):
        made.append_round({"round": number})
    with (made.folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "los')
    assert [line["round"] for line in read_rounds(made.folder)] == [0, 1, 2, 3]
    resumed = Record.open(made.folder)
    resumed.truncate_rounds(3)
    resumed.append_round({"round": 3, "again": True})
    assert read_rounds(made.folder) == [{"round": 0}, {"round": 1}, {"round": 2}, {"round": 3, "again": True}]


def test_truncating_before_the_first_round_is_fine(tmp_path):
    made = create(tmp_path / "toy")
    made.truncate_rounds(0)
    assert read_rounds(made.folder) == []


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1}', ""])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    made = create(tmp_path / "toy")
    (made.folder / "rounds.jsonl").write_text(f'{{"round": 0}}\n{line}\n{{"round": 2}}\n')
    with pytest.raises(RunError, match=r"rounds\.jsonl: line 2 is not a finished round"):
        read_rounds(made.folder)


def test_the_result_is_read_back_and_readers_want_a_run(tmp_path):
    made = create(tmp_path / "toy")
    made.save_result({"status": "finished", "rounds": 3})
    assert read_result(made.folder) == {"status": "finished", "rounds": 3}
    for read in (read_config, read_partition, read_environment, read_result, read_rounds):
        with pytest.raises(RunError, match="no such run folder"):
            read(tmp_path / "none")


def test_json_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    monkeypatch.setattr(record, "open", Disk(monkeypatch, 1, no_space).open, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1}


def test_the_environment_holds_versions_and_what_is_added():
    found = environment(seed=3)
    assert found["versions"]["torch"] == torch.__version__
    assert {"python", "fedquilt", "numpy", "safetensors"} <= found["versions"].keys()
    assert found["seed"] == 3
    assert found["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found


def test_reading_a_run_needs_no_torch(tmp_path):
    made = create(tmp_path / "toy")
    code = "import sys, fedquilt.record as r; r.read_rounds(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(made.folder)], check=False).returncode == 0
