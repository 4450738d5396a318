"""A client's private memory on its own disk.

Each memory is stored under the step that made it: the round and the number of the exchange in it. The memories of the
last round and the newest one before it are kept, so that an order that is repeated, also after the server went back to
its last checkpoint, starts from the same memory as the first time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedquilt.core.disk import private_folder, sync_folder, write_bytes
from fedquilt.core.errors import RunError
from fedquilt.core.types import ClientId, Memory
from fedquilt.record.files import explained, read_bytes, write_json
from fedquilt.record.read import read_json
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

Step = tuple[int, int]
"""A round and the number of an exchange in it; steps are ordered like tuples."""

_INDEX = "memory.json"
_ROWS = "rows.json"
_NEVER: Step = (-1, -1)


def memory_folder(root: Path, run: str, client: ClientId) -> Path:
    """The folder of one client's memories in one run."""
    return root / run / f"client-{client:03d}"


class MemoryStore:
    """The memories of one client in one run, in ``folder``, which is created with the first memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, step: Step) -> Memory:
        """Return the memory that ``step`` starts from; empty if the client has none yet.

        Raises
        ------
        RunError
            if the memory before an old step is no longer kept, or the file is missing or damaged.
        """
        kept = self._kept()
        older = [entry for entry in kept if _step(entry) < step]
        if older:
            return self._read(older[-1])
        if kept:
            raise RunError(
                f"the order is of round {step[0] + 1}, but this client has gone on to round {_step(kept[-1])[0] + 1} "
                "and no longer has its memory of the earlier round"
            )
        return {}

    def keep(self, step: Step, memory: Memory) -> None:
        """Write the memory that ``step`` made to disk, atomically.

        Raises
        ------
        RunError
            if the disk is full or the folder cannot be written.
        """
        kept = self._kept()
        if not memory and not kept:
            return  # a method without memory writes no files
        before = [entry for entry in kept if _step(entry) < step] or [_entry(_NEVER)]
        this_round = [entry for entry in before if _step(entry)[0] == step[0]]
        last = [entry for entry in before if _step(entry)[0] < step[0]][-1:]
        with explained(self.folder, lambda: "the memory of the round before is intact", "the order may be repeated"):
            private_folder(self.folder)
            entry = _entry(step)
            if memory:
                content = tree_to_bytes(memory, "memory")
                entry |= {"file": _file(step), "sha256": hashlib.sha256(content).hexdigest()}
                write_bytes(self.folder / _file(step), content, private=True)
                sync_folder(self.folder)
            entries = [*last, *this_round, entry]
            write_json(self.folder / _INDEX, {"format": 1, "kept": entries}, private=True)
            named = {entry["file"] for entry in entries}
            for path in self.folder.glob("memory-*.safetensors"):
                if path.name not in named:
                    path.unlink(missing_ok=True)

    def refuse_other_rows(self, digest: str) -> None:
        """Raise RunError if the client's rows have changed since its first order, when their digest is recorded."""
        noted = self.folder / _ROWS
        if noted.exists():
            if read_json(self.folder, _ROWS)["sha256"] != digest:
                raise RunError(
                    f"this client's rows are not those that it began the run with ({noted}); restore them, or start a "
                    "new run"
                )
            return
        with explained(self.folder, lambda: "nothing was sent", "the order may be repeated"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(noted, {"format": 1, "sha256": digest})

    @property
    def newest(self) -> Memory:
        """The newest memory; empty if there is none."""
        kept = self._kept()
        return self._read(kept[-1]) if kept else {}

    def _kept(self) -> Sequence[dict[str, Any]]:
        return read_json(self.folder, _INDEX)["kept"] if (self.folder / _INDEX).exists() else []

    def _read(self, entry: dict[str, Any]) -> Memory:
        if entry["file"] is None:
            return {}
        advice = "restore this client's memory from a copy, or start a new run"
        memory: Memory = tree_from_bytes(read_bytes(self.folder / entry["file"], entry["sha256"], advice))
        return memory


class QueryStore:
    """What one client of a run remembers between the exchanges of a query, beside its memory of the run in ``folder``.

    It is removed with the last exchange, and with the first one of the next query.
    """

    def __init__(self, folder: Path, key: str, exchanges: int) -> None:
        self.folder, self.own, self.last = folder, folder / f"query-{key}", exchanges - 1

    def before(self, step: Step) -> Memory:
        """Return what earlier exchanges have added to the memory.

        Raises
        ------
        RunError
            if it is not there, although ``step`` is not the first of the query.
        """
        added = MemoryStore(self.own).before(step)
        if step[1] and not added:
            raise RunError("what this site remembers of the query is gone, as another query has begun")
        return added

    def keep(self, step: Step, added: Memory) -> None:
        """Write what ``step`` has added; remove it if the query is over, and that of others if it begins."""
        over = step[1] == self.last
        for path in self.folder.glob("query-*"):
            if over if path == self.own else not step[1]:
                shutil.rmtree(path, ignore_errors=True)
        if not over:
            MemoryStore(self.own).keep(step, added)


def _entry(step: Step) -> dict[str, Any]:
    return {"round": step[0], "exchange": step[1], "file": None, "sha256": None}


def _step(entry: dict[str, Any]) -> Step:
    return entry["round"], entry["exchange"]


def _file(step: Step) -> str:
    return f"memory-{step[0]:06d}-{step[1]}.safetensors"
