"""Checkpoint files: the server's state and each client's memory, named by their content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedquilt.core.disk import private_folder, sync_folder, write_bytes
from fedquilt.core.errors import RunError
from fedquilt.record.files import read_bytes
from fedquilt.record.manifest import FILES, RESTORE, Entry, Kept
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

if TYPE_CHECKING:
    from fedquilt.core.types import ClientId, Memory, Tree


class Saved(NamedTuple):
    """Files that were written for a checkpoint: the state's entry, and by client the memory and its entry."""

    state: Entry
    memories: Mapping[ClientId, tuple[Memory, Entry]]

    @property
    def memory_entries(self) -> dict[str, Entry]:
        """The entries of the memories, by client."""
        return {str(client): entry for client, (_, entry) in self.memories.items()}


class CheckpointFiles:
    """The files in ``checkpoint/`` of a run folder; they never change once written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FILES
        # the memories of the current checkpoint; holding the objects keeps their identity meaningful
        self._current: Mapping[ClientId, tuple[Memory, Entry]] = {}

    def save(self, state: Tree, memories: Mapping[ClientId, Memory]) -> Saved:
        """Write the state and the memories to disk.

        A memory that is the same object as in the current checkpoint is not written again. The files become the
        current checkpoint with ``confirm``, once the manifest names them.

        Raises
        ------
        RunError
            if a file that is still needed is missing.
        OSError
            if the disk refuses.
        TypeError
            if the state or a memory is not a tree.
        """
        private_folder(self.folder)
        written = {}
        for client, memory in sorted(memories.items()):
            before = self._current.get(client)
            if before is not None and before[0] is memory:
                written[client] = before
            else:
                written[client] = (memory, self._store(f"client-{client:03d}", memory))
        saved = Saved(self._store("state", state), written)
        self.check_lengths((saved.state, *saved.memory_entries.values()))
        sync_folder(self.folder)
        return saved

    def confirm(self, saved: Saved) -> None:
        """Note that the manifest names these files: until then they may be deleted, so their memories are rewritten."""
        self._current = saved.memories

    def load(self, kept: Kept) -> tuple[Tree, dict[ClientId, Memory]]:
        """Load the state and the memories of a checkpoint, tensors on the CPU.

        Raises
        ------
        RunError
            if a file is missing or damaged.
        """
        state = self._fetch(kept.state)
        self._current = {int(client): (self._fetch(entry), entry) for client, entry in kept.memories.items()}
        return state, {client: memory for client, (memory, _) in self._current.items()}

    def check_lengths(self, entries: Iterable[Entry]) -> None:
        """Raise RunError if one of these files is missing or does not have its recorded length."""
        for entry in entries:
            path = self.folder / entry.file
            size = path.stat().st_size if path.exists() else None
            if size != entry.bytes:
                problem = "is lost" if size is None else f"damaged, it has {size} bytes of {entry.bytes}"
                raise RunError(f"{path}: {problem}; the checkpoint cannot be used without it; {RESTORE}")

    def delete_all_but(self, kept: Iterable[Kept]) -> None:
        """Delete the files that belong to none of these checkpoints."""
        named = {entry.file for one in kept for entry in one.entries}
        for path in self.folder.iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)

    def _store(self, name: str, tree: Tree) -> Entry:
        content = tree_to_bytes(tree, name)
        sha256 = hashlib.sha256(content).hexdigest()
        # the name holds the content's hash: a file the current manifest names is never overwritten by other bytes
        file = f"{name}-{sha256[:16]}.safetensors"
        write_bytes(self.folder / file, content, private=True)
        return Entry(file, sha256, len(content))

    def _fetch(self, entry: Entry) -> Tree:
        path = self.folder / entry.file
        return tree_from_bytes(read_bytes(path, entry.sha256, f"the checkpoint cannot be used; {RESTORE}"))
