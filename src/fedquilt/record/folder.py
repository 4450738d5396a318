"""The run folder, open for writing.

A checkpoint is an entry of the manifest (``checkpoint.json``, see ``record.manifest``) and the files it names in
``checkpoint/``. Those files never change once written. The manifest is replaced atomically after all of them are synced
to disk, so whatever stops a run, the manifest names only complete checkpoints.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedquilt.core.disk import sync_folder, write_bytes
from fedquilt.core.errors import RunError
from fedquilt.core.shell import command
from fedquilt.record.checkpoint_files import CheckpointFiles
from fedquilt.record.config_differences import check_same
from fedquilt.record.files import explained, to_json
from fedquilt.record.lock import Hold
from fedquilt.record.manifest import FILES, MANIFEST, RESUMED, Kept, Manifest, check_files, file_digest, write_manifest
from fedquilt.record.new_folder import BEGUN, make_folder, refuse_folder
from fedquilt.record.read import (
    ENVIRONMENT,
    RESULT,
    manifest_of,
    read_config,
    read_lines,
)
from fedquilt.record.round_lines import RoundLines

if TYPE_CHECKING:
    from fedquilt.core.types import ClientId, Memory, Tree

ADAPTERS = "adapters"
"""The subfolder for the adapters that a finished run exports."""


class Record:
    """One run folder, open for writing; made by ``Record.create`` or ``Record.open``.

    A writer also passes the ``Hold`` (lock) on the folder; a Record without one is for reading, and for tests.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], held: Hold | None = None) -> None:
        self.folder = folder
        self.config = config
        self._held = held
        manifest = manifest_of(folder)
        self._of_another_version = manifest is None or manifest.format not in RESUMED
        self._manifest = manifest or Manifest({})
        self._lines = RoundLines(folder, self._manifest.lines, self.next_round)
        self._checkpoints = CheckpointFiles(folder)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        partition: Mapping[str, Any],
        held: Hold | None = None,
    ) -> Record:
        """Make a run folder with the config, the environment and the partition; it appears complete or not at all.

        Parameters
        ----------
        folder
            The path of the run folder, which must not exist or be empty.
        config, environment, partition
            The contents of its JSON files.
        held
            The lock on the folder; None for no lock.

        Raises
        ------
        RunError
            if the folder exists and is not empty, or cannot be written.
        """
        folder = Path(folder)
        make_folder(folder, config, environment, partition, held)
        return cls(folder, read_config(folder), held)

    refuse = staticmethod(refuse_folder)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        config: Mapping[str, Any] | None = None,
        ignored: Collection[str] = (),
        held: Hold | None = None,
    ) -> Record:
        """Open the run in an existing folder.

        If ``config`` is given, its keys (``"training.steps"``) other than those in ``ignored`` must have the values
        that the run was started with.

        Raises
        ------
        RunError
            if there is no run in the folder, it was started from another config, or a file in it was changed.
        """
        folder = Path(folder)
        own = read_config(folder)
        if config is not None:
            check_same(folder, own, config, ignored)
        return cls(folder, own, held)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from; a run that stopped in its first round has none."""
        return bool(self._manifest.kept)

    @property
    def next_round(self) -> int:
        """The round with which the run continues."""
        return self._manifest.kept[-1].next_round if self._manifest.kept else 0

    @property
    def kept(self) -> dict[int, bool | None]:
        """The rounds that the run can go back to, and whether the last scores were finite then (None: no scores)."""
        return {one.next_round: one.finite for one in self._manifest.kept}

    def check(self) -> None:
        """Raise RunError if a file that the run wrote is missing or was changed; the error names the file.

        Of checkpoint files only the length is checked here; their sha256 is checked on loading.
        """
        self._refuse_other_versions()
        if self._held is not None:
            self._held.check()
        files, finished = self._manifest.files, (self.folder / RESULT).exists()
        # if the run stopped while finishing, the manifest names files that will be rewritten
        check_files(self.folder, [path for path in files if finished or path in BEGUN], self._manifest)
        read_lines(self.folder, self._lines.written)
        for kept in self._manifest.kept:
            self._checkpoints.check_lengths(kept.entries)

    def append_round(self, line: Mapping[str, Any]) -> None:
        """Append a finished round to ``rounds.jsonl``; call it before the round's ``save_checkpoint``.

        Raises
        ------
        RunError
            if the disk refuses, or another process has changed the earlier lines.
        ValueError
            if it is not the next round: no round is recorded twice.
        """
        self._still_ours()
        with self._writing(self._lines.path):
            self._lines.append(line)

    def truncate_rounds(self) -> None:
        """Delete the lines of rounds after the checkpoint: these rounds will be run again."""
        with self._writing(self._lines.path):
            self._lines.cut(self._manifest.lines, self.next_round)

    def save_checkpoint(
        self,
        next_round: int,
        state: Tree,
        memories: Mapping[ClientId, Memory],
        finite: bool | None = None,
    ) -> None:
        """Save a checkpoint: the server's state and all clients' memories, before ``next_round``.

        A memory that is the same object as in the last checkpoint is not written again, so memories must be replaced,
        never changed in place. The last ``checkpoints.keep`` checkpoints are kept, and the last one whose scores were
        ``finite``.

        Raises
        ------
        RunError
            if the disk is full, the folder cannot be written, or a file that is still needed is missing.
        TypeError
            if the state or a memory is not a tree.
        """
        self._refuse_other_versions()
        self._still_ours()
        with self._writing(self.folder / FILES):
            saved = self._checkpoints.save(state, memories)
            new = Kept(next_round, saved.state, saved.packs, self._lines.written, finite)
            self._replace(self._manifest.after(new, self._keep))
            self._checkpoints.confirm(saved)
            self._lines.next_round = next_round
            self._checkpoints.delete_all_but(self._manifest.kept)

    def load_checkpoint(self, next_round: int | None = None) -> tuple[int, Tree, dict[ClientId, Memory]]:
        """Load the last checkpoint, or the kept one with this ``next_round``; tensors are on the CPU.

        Returns the next round to run, the server's state and the clients' memories.

        Raises
        ------
        RunError
            if there is no such checkpoint, or one of its files is missing or damaged.
        """
        self._refuse_other_versions()
        if next_round == 0:
            return 0, None, {}
        kept = self._manifest.checkpoint(self.folder, next_round)
        return kept.next_round, *self._checkpoints.load(kept)

    def go_back(self, next_round: int) -> int:
        """Delete everything after a kept checkpoint, the result included; returns the number of rounds deleted.

        Raises
        ------
        RunError
            if that checkpoint is not kept, or the disk refuses.
        """
        if next_round not in (0, *self.kept):
            self.load_checkpoint(next_round)  # raises, listing the kept checkpoints
        lost = self.next_round - next_round
        with self._writing(self.folder / MANIFEST):
            (self.folder / RESULT).unlink(missing_ok=True)  # first: a result that is named but absent does not count
            sync_folder(self.folder)
            self._replace(self._manifest.before(next_round))
            self._checkpoints.delete_all_but(self._manifest.kept)
            if (self.folder / ADAPTERS).exists():
                shutil.rmtree(self.folder / ADAPTERS)
        self.truncate_rounds()
        return lost

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Record the hash of every file in ``adapters/`` and write ``result.json``, which marks the run as finished.

        Raises
        ------
        RunError
            if the disk refuses, or a file of the run folder was changed.
        """
        content = to_json(result, indent=1).encode() + b"\n"
        self.check()
        with self._writing(self.folder / RESULT):
            made = {path: file_digest(self.folder / path) for path in self._adapters()}
            made[RESULT] = hashlib.sha256(content).hexdigest()
            self._replace(replace(self._manifest, files=self._manifest.before(self.next_round).files | made))
            write_bytes(self.folder / RESULT, content)
            sync_folder(self.folder)
        self._still_ours()

    def has_adapter(self, name: str) -> bool:
        """Whether ``adapters/NAME`` exists; in a finished run, its files are checked too.

        Raises
        ------
        RunError
            if a file is missing, unknown or was changed; the error names it.
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
                f"{self.folder}: was made by an earlier version of fedquilt, whose checkpoints this version cannot "
                f"use; resume with the version named in {ENVIRONMENT}, or start the run again in another folder"
            )

    def _still_ours(self) -> None:
        if self._held is not None:
            self._held.check()
        if not (self.folder / MANIFEST).exists():
            raise RunError(f"{self.folder}: was deleted or moved while this run was writing it, so the run ends")

    def _replace(self, manifest: Manifest) -> None:
        """Replace the manifest; it is on disk before any file that only the old one names is deleted."""
        write_manifest(self.folder, manifest)
        self._manifest = manifest
        sync_folder(self.folder)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        with explained(path, self._what_is_safe, f"continue with: {command('run', '--resume', self.folder)}"):
            yield

    def _what_is_safe(self) -> str:
        if not self.has_checkpoint:
            return "there is no checkpoint yet"
        return f"the checkpoint of round {self.next_round} is intact"
