"""The run folder, open for writing.

A checkpoint is an entry of the manifest (``checkpoint.json``, see ``record.manifest``) and the files it names in
``checkpoint/``. Those files never change once written; the manifest is replaced in one step when all of them are safely
on the disk, so whatever stops a run, the manifest that is there names whole checkpoints.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedquilt.core.disk import private_folder, sync_folder, write_bytes
from fedquilt.core.errors import RunError
from fedquilt.record.files import explained, read_bytes, to_json, write_json
from fedquilt.record.lines import RoundLines
from fedquilt.record.lock import LOCK, Hold, draft_of, holder
from fedquilt.record.manifest import (
    FILES,
    FORMAT,
    MANIFEST,
    RESTORE,
    Entry,
    Kept,
    Manifest,
    check_files,
    file_digest,
    write_manifest,
)
from fedquilt.record.read import (
    CONFIG,
    ENVIRONMENT,
    PARTITION,
    RESULT,
    is_run,
    manifest_of,
    read_config,
    read_lines,
)
from fedquilt.record.same import check_same
from fedquilt.record.tree import tree_from_bytes, tree_to_bytes

if TYPE_CHECKING:
    from fedquilt.core.types import ClientId, Memory, Tree

ADAPTERS = "adapters"
"""The folder of what a finished run leaves."""

_BEGUN = (CONFIG, ENVIRONMENT, PARTITION)  # what a run holds from its first moment on


class Record:
    """One run folder, open for writing. Made by ``Record.create`` or ``Record.open``.

    Who writes gives the ``Hold`` on the folder, too; a Record without one is for reading, and for tests.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], held: Hold | None = None) -> None:
        self.folder = folder
        self.config = config
        self._held = held
        manifest = manifest_of(folder)
        self._of_another_version = manifest is None
        self._manifest = manifest or Manifest({})
        self._lines = RoundLines(folder, self._manifest.lines, self.next_round)
        # client -> (the memory as last saved, its entry in the manifest); the reference keeps the identity meaningful
        self._saved: dict[ClientId, tuple[Memory, Entry]] = {}

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        partition: Mapping[str, Any],
        held: Hold | None = None,
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
            draft = draft_of(folder)
            draft.mkdir(parents=True, exist_ok=True)
            for left in draft.iterdir():
                if left.name != LOCK:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            private_folder(draft / FILES)  # clients' memories are nobody else's
            for name, value in zip(_BEGUN, (config, {**environment, "format": FORMAT}, partition), strict=True):
                write_json(draft / name, value)
            write_manifest(draft, Manifest({name: file_digest(draft / name) for name in _BEGUN}))
            sync_folder(draft)
            if folder.is_dir():
                folder.rmdir()
            held.move(folder) if held is not None else os.replace(draft, folder)
            sync_folder(folder.parent)
        return cls(folder, read_config(folder), held)

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
            if who := holder(folder):
                raise RunError(
                    f"{folder}: a run is there, and is being written by {who}; choose another name or output"
                )
            resume = f"continue that run with: fedquilt run --resume {folder}\nor " if is_run(folder) else ""
            raise RunError(f"{folder}: this folder exists and is not empty; {resume}choose another name or output")

    @classmethod
    def open(
        cls,
        folder: str | Path,
        config: Mapping[str, Any] | None = None,
        ignored: Collection[str] = (),
        held: Hold | None = None,
    ) -> Record:
        """The run in an existing folder.

        ``config`` is what the caller wants to run; its keys (``"training.steps"``), but those in ``ignored``, must have
        the values that the run was started with.

        Raises
        ------
        RunError
            if there is no run in the folder, it was started from another config, or something in it was changed.
        """
        folder = Path(folder)
        own = read_config(folder)
        if config is not None:
            check_same(folder, own, config, ignored)
        return cls(folder, own, held)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from; a run stopped in its first round has none."""
        return bool(self._manifest.kept)

    @property
    def next_round(self) -> int:
        """The round with which the run goes on."""
        return self._manifest.kept[-1].next_round if self._manifest.kept else 0

    @property
    def kept(self) -> dict[int, bool | None]:
        """The rounds to which the run can go back, and whether the scores before were finite (None: no scores)."""
        return {one.next_round: one.finite for one in self._manifest.kept}

    def check(self) -> None:
        """Nothing, if everything that the run wrote is there and as it was written; checkpoints are held to their
        sha256 when they are loaded.

        Raises
        ------
        RunError
            naming the file that is not.
        """
        self._refuse_other_versions()
        if self._held is not None:
            self._held.check()
        files, finished = self._manifest.files, (self.folder / RESULT).exists()
        # a run that stopped while it finished names what will be written anew
        check_files(self.folder, [path for path in files if finished or path in _BEGUN], self._manifest)
        read_lines(self.folder, self._lines.written)
        for kept in self._manifest.kept:
            self._present(kept.entries)

    def append_round(self, line: Mapping[str, Any]) -> None:
        """Write one finished round to the disk. To be called before the round's ``save_checkpoint``.

        Raises
        ------
        RunError
            if the disk refuses, or somebody else has changed the lines before.
        ValueError
            if it is not the round that comes next: no round stands twice.
        """
        self._still_ours()
        with self._writing(self._lines.path):
            self._lines.append(line)

    def truncate_rounds(self) -> None:
        """Drop what stands behind the lines that the checkpoint holds: these rounds will be run again."""
        with self._writing(self._lines.path):
            self._lines.cut(self._manifest.lines, self.next_round)

    def save_checkpoint(
        self,
        next_round: int,
        state: Tree,
        memories: Mapping[ClientId, Memory],
        finite: bool | None = None,
    ) -> None:
        """Make this the run's checkpoint: the server's state and all clients' memories, before ``next_round``.

        A memory that is the same object as at the last call is not written again, so a memory must be replaced, not
        changed in place. Until the new checkpoint is whole, the old one stays, and ``checkpoints.keep`` of them are
        kept, with the last one whose scores were ``finite``.

        Raises
        ------
        RunError
            if the disk is full or the folder cannot be written, or a file that is still needed is gone.
        TypeError
            if the state or a memory is not a tree.
        """
        self._refuse_other_versions()
        self._still_ours()
        with self._writing(self.folder / FILES):
            private_folder(self.folder / FILES)
            saved = {}
            for client, memory in sorted(memories.items()):
                old = self._saved.get(client)
                if old is not None and old[0] is memory:
                    saved[client] = old
                else:
                    saved[client] = (memory, self._store(f"client-{client:03d}", memory))
            entries = {str(client): entry for client, (_, entry) in saved.items()}
            new = Kept(next_round, self._store("state", state), entries, self._lines.written, finite)
            self._present(new.entries)
            sync_folder(self.folder / FILES)
            self._replace(self._manifest.after(new, self._keep))
            self._saved, self._lines.next_round = saved, next_round
            self._clear()

    def load_checkpoint(self, next_round: int | None = None) -> tuple[int, Tree, dict[ClientId, Memory]]:
        """The next round to run, the server's state and the clients' memories, tensors on the CPU: of the last
        checkpoint, or of the kept one with this ``next_round``.

        Raises
        ------
        RunError
            if there is no such checkpoint, or one of its files is missing or damaged.
        """
        self._refuse_other_versions()
        if next_round == 0:
            return 0, None, {}
        if not self.has_checkpoint:
            raise RunError(
                f"{self.folder}: no checkpoint, because the run ended before its first round was complete; "
                "start it again from round 0"
            )
        wanted = [one for one in self._manifest.kept if next_round in (None, one.next_round)]
        if not wanted:
            raise RunError(
                f"{self.folder}: the checkpoint after {next_round} rounds is not kept; kept are those after "
                f"{', '.join(map(str, self.kept))} rounds, and 0 starts anew; checkpoints.keep says how many are"
            )
        kept = wanted[-1]
        state = self._fetch(kept.state)
        self._saved = {int(client): (self._fetch(entry), entry) for client, entry in kept.memories.items()}
        return kept.next_round, state, {client: memory for client, (memory, _) in self._saved.items()}

    def go_back(self, next_round: int) -> int:
        """Forget all that came after a kept checkpoint, result and lines too; gives how many rounds that were.

        Raises
        ------
        RunError
            if that checkpoint is not kept, or the disk refuses.
        """
        if next_round not in (0, *self.kept):
            self.load_checkpoint(next_round)  # says what is kept
        lost = self.next_round - next_round
        with self._writing(self.folder / MANIFEST):
            (self.folder / RESULT).unlink(missing_ok=True)  # first: a result that is named and not there is no result
            sync_folder(self.folder)
            self._replace(self._manifest.before(next_round))
            self._clear()
            if (self.folder / ADAPTERS).exists():
                shutil.rmtree(self.folder / ADAPTERS)
        self.truncate_rounds()
        return lost

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Note every file of ``adapters/`` and write ``result.json``, the sign that the run is finished.

        Raises
        ------
        RunError
            if the disk refuses, or the folder is no longer what this run made it.
        """
        content = to_json(result, indent=1).encode() + b"\n"
        self.check()
        with self._writing(self.folder / RESULT):
            made = {path: file_digest(self.folder / path) for path in self._adapters()}
            files = {
                **self._manifest.before(self.next_round).files,
                **made,
                RESULT: hashlib.sha256(content).hexdigest(),
            }
            self._replace(replace(self._manifest, files=files))
            write_bytes(self.folder / RESULT, content)
            sync_folder(self.folder)
        self._still_ours()

    def has_adapter(self, name: str) -> bool:
        """Whether there is ``adapters/NAME``, as the run left it if it finished.

        Raises
        ------
        RunError
            naming the file that is missing, unknown or has changed.
        """
        there = (self.folder / ADAPTERS / name).exists()
        if RESULT not in self._manifest.files or not (self.folder / RESULT).exists():
            return there
        begin = f"{ADAPTERS}/{name}/"
        wanted = {path for path in (*self._manifest.files, *self._adapters()) if path.startswith(begin)}
        check_files(self.folder, sorted(wanted), self._manifest)
        return bool(wanted)

    @property
    def _keep(self) -> int:
        return int((self.config.get("checkpoints") or {}).get("keep", 2))

    def _adapters(self) -> list[str]:
        found = (self.folder / ADAPTERS).rglob("*")
        return sorted(path.relative_to(self.folder).as_posix() for path in found if path.is_file())

    def _refuse_other_versions(self) -> None:
        if self._of_another_version:
            raise RunError(
                f"{self.folder}: was made by an earlier version of fedquilt, whose checkpoints cannot be checked, so "
                f"this one does not take them; go on with the version named in {ENVIRONMENT}, or start the run again "
                "in another folder"
            )

    def _still_ours(self) -> None:
        if self._held is not None:
            self._held.check()
        if not (self.folder / MANIFEST).exists():
            raise RunError(f"{self.folder}: was deleted or moved while this run was writing it, so the run ends")

    def _present(self, entries: Collection[Entry]) -> None:
        """Nothing, if these files are there in their full length."""
        for entry in entries:
            path = self.folder / FILES / entry.file
            size = path.stat().st_size if path.exists() else None
            if size != entry.bytes:
                what = "is lost" if size is None else f"damaged, it has {size} bytes of {entry.bytes}"
                raise RunError(f"{path}: {what}; the checkpoint cannot be used without it; {RESTORE}")

    def _replace(self, manifest: Manifest) -> None:
        """Make this the manifest, on the disk before anything that the old one names is deleted."""
        write_manifest(self.folder, manifest)
        self._manifest = manifest
        sync_folder(self.folder)

    def _clear(self) -> None:
        """Delete what no kept checkpoint names."""
        named = {entry.file for kept in self._manifest.kept for entry in kept.entries}
        for path in (self.folder / FILES).iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)

    def _store(self, name: str, tree: Tree) -> Entry:
        content = tree_to_bytes(tree, name)
        sha256 = hashlib.sha256(content).hexdigest()
        # the name holds the content's hash: a file the current manifest names is never overwritten by other bytes
        file = f"{name}-{sha256[:16]}.safetensors"
        write_bytes(self.folder / FILES / file, content, private=True)
        return Entry(file, sha256, len(content))

    def _fetch(self, entry: Entry) -> Tree:
        path = self.folder / FILES / entry.file
        return tree_from_bytes(read_bytes(path, entry.sha256, f"the checkpoint cannot be used; {RESTORE}"))

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        with explained(path, self._what_is_safe, f"continue with: fedquilt run --resume {self.folder}"):
            yield

    def _what_is_safe(self) -> str:
        if not self.has_checkpoint:
            return "there is no checkpoint yet"
        return f"the checkpoint of round {self.next_round} is whole"
