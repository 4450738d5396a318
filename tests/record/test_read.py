"""A run folder is read back without torch; damaged files are named."""

from __future__ import annotations

import pytest
import torch
from run_folders import CONFIG, create, finish, make_old

from fedquilt.core.errors import RunError
from fedquilt.record import (
    Record,
    folder,
    manifest,
    new_folder,
    read_config,
    read_environment,
    read_partition,
    read_result,
    read_rounds,
)
from fedquilt.record.read import remark_if_unfinished


def test_rounds_are_lines_and_nan_is_null(tmp_path):
    made = create(tmp_path / "toy")
    finish(made, {"round": 0, "loss": float("nan"), "list": [float("inf"), 1.5], "clients": {3: {"x": 1}}})
    finish(made, {"round": 1, "tensor": torch.tensor([1.0, float("nan")]), "pair": (1, 2)})
    assert read_rounds(made.folder) == [
        {"round": 0, "loss": None, "list": [None, 1.5], "clients": {"3": {"x": 1}}},
        {"round": 1, "tensor": [1.0, None], "pair": [1, 2]},
    ]
    assert len((made.folder / "rounds.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1}', ""])
def test_a_damaged_line_in_the_middle_of_an_old_run_is_named(tmp_path, line):
    made = create(tmp_path / "toy")
    make_old(made.folder)
    (made.folder / "rounds.jsonl").write_text(f'{{"round": 0}}\n{line}\n{{"round": 2}}\n')
    with pytest.raises(RunError, match=r"rounds\.jsonl: line 2 is not a finished round"):
        read_rounds(made.folder)


def test_lines_that_were_changed_or_lost_are_noticed_and_those_of_no_checkpoint_left_out(tmp_path):
    made = create(tmp_path / "toy")
    for number in range(3):
        finish(made, {"round": number, "loss": 0.5})
    made.append_round({"round": 3})
    assert [line["round"] for line in read_rounds(made.folder)] == [0, 1, 2]
    path = made.folder / "rounds.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0.5", b"0.6", 1))
    with pytest.raises(
        RunError, match=r"rounds\.jsonl: damaged, its sha256 is not .*; restore it from a copy, or start"
    ):
        read_rounds(made.folder)
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(
        RunError, match=r"rounds\.jsonl: lines of finished rounds are lost \(52 bytes of 78 are there\)"
    ):
        read_rounds(made.folder)
    path.unlink()
    with pytest.raises(RunError, match=r"rounds\.jsonl: lines of finished rounds are lost \(0 bytes"):
        read_rounds(made.folder)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "partition.json", "result.json"])
def test_a_changed_digit_is_noticed_by_every_reader(tmp_path, name):
    readers = {"config.json": read_config, "environment.json": read_environment, "partition.json": read_partition}
    made = create(tmp_path / "toy", CONFIG, {"threads": 1}, {"digest": "1"})
    made.save_result({"rounds": 1})
    path = made.folder / name
    path.write_bytes(path.read_bytes().replace(b"1", b"7", 1))
    with pytest.raises(
        RunError, match=rf"{name}: damaged, its sha256 is not the one that was noted in checkpoint\.json"
    ):
        readers.get(name, read_result)(made.folder)
    with pytest.raises(RunError, match=rf"{name}: damaged"):
        Record.open(made.folder).check()


def test_a_lost_manifest_is_noticed_and_runs_of_earlier_versions_are_read_but_not_gone_on_with(tmp_path):
    made = create(tmp_path / "toy")
    finish(made, {"round": 0})
    (made.folder / "checkpoint.json").unlink()
    with pytest.raises(RunError, match=r"checkpoint\.json: is lost, or belongs to another run; restore it from a copy"):
        read_config(made.folder)
    make_old(made.folder)
    assert read_config(made.folder) == CONFIG
    assert read_rounds(made.folder) == [{"round": 0}]
    with pytest.raises(
        RunError, match=r"made by an earlier version of fedquilt.*resume with the version named in envir"
    ):
        Record.open(made.folder).check()
    with pytest.raises(RunError, match="made by an earlier version"):
        Record.open(made.folder).save_checkpoint(1, {}, {})


def test_a_run_of_the_format_before_is_read_and_not_resumed(tmp_path, monkeypatch):
    for module in (manifest, new_folder):
        monkeypatch.setattr(module, "FORMAT", 2)
    monkeypatch.setattr(folder, "RESUMED", (2,))
    made = create(tmp_path / "toy")
    finish(made, {"round": 0})
    monkeypatch.undo()
    assert read_config(made.folder) == CONFIG
    assert read_rounds(made.folder) == [{"round": 0}]
    with pytest.raises(RunError, match="an earlier version of fedquilt, whose checkpoints this version cannot use"):
        Record.open(made.folder).load_checkpoint()


def test_the_result_is_read_back_and_readers_want_a_run(tmp_path):
    made = create(tmp_path / "toy")
    made.save_result({"status": "finished", "rounds": 3})
    assert read_result(made.folder) == {"status": "finished", "rounds": 3}
    for read in (read_config, read_partition, read_environment, read_result, read_rounds):
        with pytest.raises(RunError, match="no such run folder"):
            read(tmp_path / "none")
    (tmp_path / "run.toml").write_text("seed = 1")
    with pytest.raises(RunError, match=r"run.toml: is a file; give the folder that the run was written to"):
        read_config(tmp_path / "run.toml")


def test_a_run_without_a_result_is_told_to_be_unfinished(tmp_path):
    made = create(tmp_path / "toy")
    assert remark_if_unfinished(made.folder).startswith(f"{made.folder} is unfinished: this is the model of its last ")
    assert remark_if_unfinished(made.folder).endswith(" rounds are done")
    made.save_result({"status": "finished", "rounds": 3})
    assert remark_if_unfinished(made.folder) == ""
