"""The run folder, open for writing.

A checkpoint is a manifest (``checkpoint.json``) and the files it names in ``checkpoint/``. Those files never change
once written; the manifest is replaced in one step when all of them are safely on the disk, so whatever stops a run,
the manifest that is there names a whole checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedquilt.core.errors import RunError
from fedquilt.record.files import append_bytes, explained, read_bytes, sync_folder, to_json, write_bytes, write_json
from fedquilt.record.read import (
    CONFIG,
    ENVIRONMENT,
    PARTITION,
    RESULT,
    ROUNDS,
    is_run,
    read_config,
    read_json,
    read_rounds,
)
from fedquilt.record.same import check_same
from fedquilt.record.tree import tree_from_bytes, tree_to_bytes

if TYPE_CHECKING:
    from fedquilt.core.types import ClientId, Memory, Tree

_FORMAT = 1
_MANIFEST, _FILES = "checkpoint.json", "checkpoint"


class Record:
    """One run folder, open for writing. Made by ``Record.create`` or ``Record.open``."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self._last_round = self._read_manifest()["next_round"] - 1 if self.has_checkpoint else None
        # client -> (the memory as last saved, its entry in the manifest); the reference keeps the identity meaningful
        self._saved: dict[ClientId, tuple[Memory, dict[str, Any]]] = {}

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        partition: Mapping[str, Any],
    ) -> Record:
        """A new run folder that holds the config, the environment and the partition; it appears whole or not at all.

        Raises
        ------
        RunError
            if the folder exists and is not empty, or cannot be written.
        """
        folder = Path(folder)
        with explained(folder, lambda: "no run was started", "start the run again"):
            cls.refuse(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = folder.parent / f".{folder.name}.creating"
            if draft.exists():
                shutil.rmtree(draft)
            (draft / _FILES).mkdir(parents=True)
            for name, value in ((CONFIG, config), (ENVIRONMENT, environment), (PARTITION, partition)):
                write_json(draft / name, value)
            if folder.is_dir():
                folder.rmdir()
            os.replace(draft, folder)
            sync_folder(folder.parent)
        return cls(folder, read_config(folder))

    @staticmethod
    def refuse(folder: Path) -> None:
        """Nothing, if a new run could be made in ``folder``: it does not exist, or is an empty folder.

        Raises
        ------
        RunError
            if it is a file or holds anything.
        """
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder}: is a file, not a folder; choose another output")
        if folder.is_dir() and any(folder.iterdir()):
            resume = f"continue that run with: fedquilt run --resume {folder}\nor " if is_run(folder) else ""
            raise RunError(f"{folder}: this folder exists and is not empty; {resume}choose another name or output")

    @classmethod
    def open(cls, folder: str | Path, config: Mapping[str, Any] | None = None, ignored: Collection[str] = ()) -> Record:
        """The run in an existing folder, to be resumed.

        ``config`` is what the caller wants to run; its keys (``"training.steps"``), but those in ``ignored``, must have
        the values that the run was started with.

        Raises
        ------
        RunError
            if there is no run in the folder, or it was started from another config.
        """
        folder = Path(folder)
        own = read_config(folder)
        if config is not None:
            check_same(folder, own, config, ignored)
        return cls(folder, own)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from; a run stopped in its first round has none."""
        return (self.folder / _MANIFEST).exists()

    def append_round(self, line: Mapping[str, Any]) -> None:
        """Write one finished round to the disk. To be called before the round's ``save_checkpoint``."""
        path = self.folder / ROUNDS
        with self._writing(path):
            append_bytes(path, to_json(line).encode() + b"\n")

    def truncate_rounds(self, next_round: int) -> None:
        """Drop the lines of rounds from ``next_round`` on, and a last line that was cut off: they will be run again."""
        path = self.folder / ROUNDS
        kept = [line for line in read_rounds(self.folder) if line["round"] < next_round]
        with self._writing(path):
            write_bytes(path, b"".join(to_json(line).encode() + b"\n" for line in kept))
            sync_folder(self.folder)

    def save_checkpoint(self, next_round: int, state: Tree, memories: Mapping[ClientId, Memory], seed: int) -> None:
        """Make this the run's checkpoint: the server's state and all clients' memories, before ``next_round``.

        A memory that is the same object as at the last call is not written again, so a memory must be replaced, not
        changed in place. Until the new checkpoint is whole, the old one stays.

        Raises
        ------
        RunError
            if the disk is full or the folder cannot be written.
        TypeError
            if the state or a memory is not a tree.
        """
        with self._writing(self.folder / _FILES):
            (self.folder / _FILES).mkdir(exist_ok=True)
            saved = {}
            for client, memory in sorted(memories.items()):
                old = self._saved.get(client)
                if old is not None and old[0] is memory:
                    saved[client] = old
                else:
                    saved[client] = (memory, self._store(f"client-{client:03d}", memory))
            state_entry = self._store("state", state)
            manifest = {
                "format": _FORMAT,
                "next_round": next_round,
                "seed": seed,
                "config": self.config,
                "state": state_entry,
                "memories": {str(client): entry for client, (_, entry) in saved.items()},
            }
            sync_folder(self.folder / _FILES)
            write_bytes(self.folder / _MANIFEST, to_json(manifest, indent=1).encode())
            self._last_round = next_round - 1
            self._saved = saved
            sync_folder(self.folder)  # before anything the old manifest names is deleted
            named = {state_entry["file"], *(entry["file"] for _, entry in saved.values())}
            for path in (self.folder / _FILES).iterdir():
                if path.name not in named:
                    path.unlink(missing_ok=True)

    def load_checkpoint(self) -> tuple[int, Tree, dict[ClientId, Memory]]:
        """The next round to run, the server's state and the clients' memories, tensors on the CPU.

        Raises
        ------
        RunError
            if there is no checkpoint, it belongs to another config, or one of its files is missing or damaged.
        """
        manifest = self._read_manifest()
        check_same(self.folder, manifest["config"], self.config, (), "checkpoint from another config")
        state = self._fetch(manifest["state"])
        self._saved = {int(client): (self._fetch(entry), entry) for client, entry in manifest["memories"].items()}
        return manifest["next_round"], state, {client: memory for client, (memory, _) in self._saved.items()}

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, the sign that the run is finished."""
        with self._writing(self.folder / RESULT):
            write_json(self.folder / RESULT, result)

    def _read_manifest(self) -> dict[str, Any]:
        if not self.has_checkpoint:
            raise RunError(
                f"{self.folder}: no checkpoint, because the run ended before its first round was complete; "
                "start it again from round 0"
            )
        manifest = read_json(self.folder, _MANIFEST)
        if manifest.get("format") != _FORMAT:
            raise RunError(
                f"{self.folder / _MANIFEST}: format {manifest.get('format')}, but this version of fedquilt reads "
                f"format {_FORMAT}; resume with the version named in {ENVIRONMENT}"
            )
        return manifest

    def _store(self, name: str, tree: Tree) -> dict[str, Any]:
        content = tree_to_bytes(tree, name)
        sha256 = hashlib.sha256(content).hexdigest()
        # the name holds the content's hash: a file the current manifest names is never overwritten by other bytes
        file = f"{name}-{sha256[:16]}.safetensors"
        write_bytes(self.folder / _FILES / file, content)
        return {"file": file, "sha256": sha256, "bytes": len(content)}

    def _fetch(self, entry: Mapping[str, Any]) -> Tree:
        path = self.folder / _FILES / entry["file"]
        advice = "the checkpoint cannot be used; restore the file from a copy, or start the run again in another folder"
        return tree_from_bytes(read_bytes(path, entry["sha256"], advice))

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        with explained(path, self._what_is_safe, f"continue with: fedquilt run --resume {self.folder}"):
            yield

    def _what_is_safe(self) -> str:
        if self._last_round is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of round {self._last_round} is whole"
