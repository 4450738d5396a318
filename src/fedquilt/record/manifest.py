"""``checkpoint.json``, the manifest: the files of a run folder with the sha256 of each, and its own.

    format    4
    files     the sha256 of files that do not change, by path: config, environment, partition; adapters and result
              once the run is finished
    kept      the checkpoints that the run can continue from, oldest first (see ``Kept``)
    sha256    of everything above, as ``_digest`` computes it

It is replaced atomically, so a folder that does not agree with it was changed by something else. In format 3 every
memory had a file of its own; such runs are resumed. Those made before can be read, but not resumed: methods had other
states, and before format 2 nothing could be checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import RunError
from fedquilt.record.files import to_json

MANIFEST, FILES = "checkpoint.json", "checkpoint"
FORMAT = 4
RESUMED = (3, FORMAT)
"""The formats of runs that can be resumed."""

_READ = (2, *RESUMED)
_OLD_KEYS = {"format", "next_round", "seed", "config", "state", "memories"}  # of format 1

RESTORE = "restore it from a copy, or start the run again in another folder"


@dataclass(frozen=True)
class Entry:
    """A file in ``checkpoint/``, with its sha256 and its length in bytes."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Lines:
    """The first ``bytes`` bytes of ``rounds.jsonl``, and their sha256."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class Kept:
    """One checkpoint that is kept.

    Attributes
    ----------
    next_round
        The round that comes next.
    state
        The file of the server's state.
    packs
        The files of the clients' memories, oldest first. Each holds those of several clients; a client's memory is the
        one in the last file that has one of this client.
    lines
        The lines of the rounds until then.
    finite
        Whether all scores of the last round were finite numbers; None where nothing was scored.
    memories
        In a checkpoint of format 3, the files of single memories, by client.
    """

    next_round: int
    state: Entry
    packs: tuple[Entry, ...]
    lines: Lines
    finite: bool | None
    memories: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All files of the checkpoint."""
        return self.state, *self.packs, *self.memories.values()


@dataclass(frozen=True)
class Manifest:
    """The content of a run folder: the sha256 of its files by path, and its checkpoints, oldest first."""

    files: dict[str, str]
    kept: tuple[Kept, ...] = ()
    format: int = FORMAT

    @property
    def lines(self) -> Lines:
        """The lines of the rounds that the last checkpoint includes."""
        return self.kept[-1].lines if self.kept else Lines()

    def after(self, new: Kept, keep: int) -> Manifest:
        """Add a checkpoint; the last ``keep`` checkpoints stay, and the last one whose scores were finite."""
        kept = (*(one for one in self.kept if one.next_round < new.next_round), new)
        finite = [one for one in kept if one.finite][-1:]
        return replace(self, kept=tuple(one for one in kept if one in kept[-keep:] or one in finite))

    def checkpoint(self, folder: Path, next_round: int | None) -> Kept:
        """Return the last checkpoint, or the one before ``next_round``; RunError, naming ``folder``, if not kept."""
        if not self.kept:
            raise RunError(
                f"{folder}: no checkpoint, because the run ended before its first round was complete; start it again "
                "from round 0"
            )
        wanted = [one for one in self.kept if next_round in (None, one.next_round)]
        if not wanted:
            raise RunError(
                f"{folder}: the checkpoint after {next_round} rounds is not kept; kept are those after "
                f"{', '.join(str(one.next_round) for one in self.kept)} rounds, and 0 starts anew; checkpoints.keep "
                "says how many are"
            )
        return wanted[-1]

    def before(self, next_round: int) -> Manifest:
        """Drop the checkpoints after a round, and the files that only a finished run has."""
        files = {path: sha256 for path, sha256 in self.files.items() if "/" not in path and path != "result.json"}
        return Manifest(files, tuple(one for one in self.kept if one.next_round <= next_round))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a folder atomically; it is durable once the folder is synced too."""
    value = {**asdict(manifest), "format": FORMAT}
    write_bytes(folder / MANIFEST, to_json({**value, "sha256": _digest(value)}, indent=1).encode() + b"\n")


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder; None if the folder is not a run, or was made before there were manifests.

    Raises
    ------
    RunError
        if the manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        value = json.loads(content)
        if value.keys() == _OLD_KEYS and value["format"] == 1:
            return None
        noted = value.pop("sha256")
        if noted == _digest(value) and value["format"] in _READ:
            return Manifest(value["files"], tuple(_kept(one) for one in value["kept"]), value["format"])
        found = value["format"] if noted == _digest(value) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: damaged, it is no list of what the run holds; {RESTORE}") from error
    if found is not None:
        raise RunError(f"{path}: format {found}, but this version of fedquilt reads format {FORMAT}; take a newer one")
    raise RunError(f"{path}: damaged, its sha256 is not the one that is noted in it; {RESTORE}")


def check_bytes(path: Path, content: bytes, sha256: str) -> None:
    """Raise RunError if ``content``, read from ``path``, has another sha256."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RunError(f"{path}: damaged, its sha256 is not the one that was noted in {MANIFEST}; {RESTORE}")


def check_files(folder: Path, names: Iterable[str], manifest: Manifest) -> None:
    """Raise RunError for the first of these files that is missing, unknown to the manifest or changed."""
    for name in names:
        path = folder / name
        if name not in manifest.files:
            raise RunError(f"{path}: does not belong to this run, {MANIFEST} does not list it; delete or move it")
        try:
            found = file_digest(path)
        except OSError as error:
            advice = "let this user read the run folder" if isinstance(error, PermissionError) else RESTORE
            raise RunError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
        if found != manifest.files[name]:
            raise RunError(f"{path}: damaged, its sha256 is not the one that was noted in {MANIFEST}; {RESTORE}")


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file without reading it into memory at once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(value: Mapping[str, Any]) -> Kept:
    memories = {str(client): _entry(entry) for client, entry in value["memories"].items()}
    packs = tuple(_entry(entry) for entry in value.get("packs", ()))
    lines = Lines(**value["lines"])
    return Kept(int(value["next_round"]), _entry(value["state"]), packs, lines, value["finite"], memories)


def _entry(value: Mapping[str, Any]) -> Entry:
    if Path(value["file"]).name != value["file"]:
        raise ValueError("a file of a checkpoint lies in its folder")
    return Entry(**value)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
