"""The run folder, open for writing.

A checkpoint is an entry of the manifest (``checkpoint.json``, see ``record.manifest``) and the files it names in
``checkpoint/``. Those files never change once written; the manifest is replaced in one step when all of them are safely
on the disk, so whatever stops a run, the manifest that is there names whole checkpoints.
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
from fedquilt.record.checkpoint_files import CheckpointFiles
from fedquilt.record.config_differences import check_same
from fedquilt.record.files import explained, to_json
from fedquilt.record.lock import Hold
from fedquilt.record.manifest import (
    FILES,
    FORMAT,
    MANIFEST,
    Kept,
    Manifest,
    check_files,
    file_digest,
    write_manifest,
)
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
"""The folder of what a finished run leaves."""


class Record:
    """One run folder, open for writing. Made by ``Record.create`` or ``Record.open``.

    Who writes gives the ``Hold`` on the folder, too; a Record without one is for reading, and for tests.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], held: Hold | None = None) -> None:
        self.folder = folder
        self.config = config
        self._held = held
        manifest = manifest_of(folder)
        self._of_another_version = manifest is None or manifest.format != FORMAT
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
        """A new run folder that holds the config, the environment and the partition; it appears whole or not at all.

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
        check_files(self.folder, [path for path in files if finished or path in BEGUN], self._manifest)
        read_lines(self.folder, self._lines.written)
        for kept in self._manifest.kept:
            self._checkpoints.check_lengths(kept.entries)

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
            of_state, of_memories = self._checkpoints.save(state, memories)
            new = Kept(next_round, of_state, of_memories, self._lines.written, finite)
            self._replace(self._manifest.after(new, self._keep))
            self._lines.next_round = next_round
            self._checkpoints.delete_all_but(self._manifest.kept)

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
        kept = self._manifest.checkpoint(self.folder, next_round)
        return kept.next_round, *self._checkpoints.load(kept)

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
            self._checkpoints.delete_all_but(self._manifest.kept)
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
            made[RESULT] = hashlib.sha256(content).hexdigest()
            self._replace(replace(self._manifest, files=self._manifest.before(self.next_round).files | made))
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
                f"{self.folder}: was made by an earlier version of fedquilt, whose checkpoints this one cannot take; "
                f"go on with the version named in {ENVIRONMENT}, or start the run again in another folder"
            )

    def _still_ours(self) -> None:
        if self._held is not None:
            self._held.check()
        if not (self.folder / MANIFEST).exists():
            raise RunError(f"{self.folder}: was deleted or moved while this run was writing it, so the run ends")

    def _replace(self, manifest: Manifest) -> None:
        """Make this the manifest, on the disk before anything that the old one names is deleted."""
        write_manifest(self.folder, manifest)
        self._manifest = manifest
        sync_folder(self.folder)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        with explained(path, self._what_is_safe, f"continue with: fedquilt run --resume {self.folder}"):
            yield

    def _what_is_safe(self) -> str:
        if not self.has_checkpoint:
            return "there is no checkpoint yet"
        return f"the checkpoint of round {self.next_round} is whole"
