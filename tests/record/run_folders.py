"""What the tests of the run folder share: a run to begin with, equality to the bit, and a disk that fails."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
from pathlib import Path

import torch

from fedquilt.core import disk
from fedquilt.record import Record
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

CONFIG = {"name": "toy", "seed": 1, "output": "runs", "training": {"steps": 5, "learning_rate": 0.1}}


def create(folder: Path, config=CONFIG, around=None, partition=None) -> Record:
    return Record.create(folder, config, around or {"versions": {}}, partition or {"digest": "d", "clients": []})


def make_old(folder: Path) -> None:
    """Makes a run folder one of the first format, which had no list of what it holds."""
    old = {"format": 1, "next_round": 1, "seed": 1, "config": CONFIG, "state": {}, "memories": {}}
    (folder / "checkpoint.json").write_text(json.dumps(old))
    around = json.loads((folder / "environment.json").read_text())
    around.pop("format")
    (folder / "environment.json").write_text(json.dumps(around))


def make_format_3(made: Record) -> None:
    """Makes a run folder one of format 3, in which each memory had a file of its own."""
    place, path = made.folder / "checkpoint", made.folder / "checkpoint.json"
    value = json.loads(path.read_text())
    for kept in value["kept"]:
        trees = [tree_from_bytes((place / entry["file"]).read_bytes()) for entry in kept.pop("packs")]
        newest = {client: memory for tree in trees for client, memory in tree.items()}
        for client, memory in newest.items():
            content = tree_to_bytes(memory)
            sha256 = hashlib.sha256(content).hexdigest()
            file = f"client-{int(client):03d}-{sha256[:16]}.safetensors"
            (place / file).write_bytes(content)
            kept["memories"][client] = {"file": file, "sha256": sha256, "bytes": len(content)}
    for pack in place.glob("memories-*"):
        pack.unlink()
    value |= {"format": 3}
    del value["sha256"]
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**value, "sha256": digest}))


def finish(made: Record, line: dict, state=None, memories=None, finite=None) -> None:
    """Writes one round: its line, and the checkpoint behind it."""
    made.append_round(line)
    made.save_checkpoint(line["round"] + 1, state or {}, memories or {}, finite)


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


class Killed(BaseException):
    """Stands for kill -9: after it nothing of the process runs."""


class Disk:
    """Lets ``left`` steps on the disk happen (opening, writing, syncing, renaming, deleting), then none."""

    def __init__(self, monkeypatch, left: int, failure) -> None:
        self.left, self.failure = left, failure
        monkeypatch.setattr(disk, "open", self.open, raising=False)
        for name in ("replace", "fsync"):
            monkeypatch.setattr(os, name, self.guarded(getattr(os, name)))
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

    def open(self, path, mode, opener=None):
        self.step()
        file = builtins.open(path, mode, opener=opener)  # noqa: SIM115 - the handle below closes it
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

            flush, fileno, truncate = file.flush, file.fileno, file.truncate

        return Handle()


def no_space():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
