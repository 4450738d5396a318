"""Files are replaced atomically, and errors of the disk are explained."""

from __future__ import annotations

import errno
import json
import os

import pytest
from run_folders import Disk, create, finish, no_space

from fedquilt.core import disk
from fedquilt.core.errors import RunError
from fedquilt.record import write_json


def test_json_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    monkeypatch.setattr(disk, "open", Disk(monkeypatch, 1, no_space).open, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1}


@pytest.mark.parametrize(
    ("code", "reason", "advice"),
    [
        (errno.ENOSPC, "No space left on device", "free some space"),
        (errno.EROFS, "Read-only file system", "make the folder writable"),
        (errno.EACCES, "Permission denied", "make the folder writable"),
        (errno.EIO, "Input/output error", "check the disk"),
    ],
)
def test_a_disk_that_refuses_gives_one_clear_message(tmp_path, monkeypatch, code, reason, advice):
    made = create(tmp_path / "toy")

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code), "some.part")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "open", refuse, raising=False)
        with pytest.raises(RunError, match="there is no checkpoint yet"):
            made.append_round({"round": 0})
    made.save_checkpoint(4, {}, {})
    finish(made, {"round": 4})
    monkeypatch.setattr(disk, "open", refuse, raising=False)
    tail = f"cannot be written ({reason}); the checkpoint of round 5 is intact; {advice}, then continue with: "
    for act, name in (
        (lambda: made.append_round({"round": 5}), "rounds.jsonl"),
        (lambda: made.save_checkpoint(6, {}, {}), "checkpoint"),
        (lambda: made.save_result({}), "result.json"),
        (made.truncate_rounds, "rounds.jsonl"),
    ):
        with pytest.raises(RunError) as caught:
            act()
        assert str(caught.value) == f"{made.folder / name}: {tail}fedquilt run --resume {made.folder}"
    with pytest.raises(RunError, match=r"no run was started; .*, then start the run again"):
        create(tmp_path / "second")
