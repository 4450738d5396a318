"""The files of checkpoints: the server's state and each client's memory, written once and named by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedquilt.core.disk import private_folder, sync_folder, write_bytes
from fedquilt.core.errors import RunError
from fedquilt.record.files import read_bytes
from fedquilt.record.manifest import FILES, RESTORE, Entry, Kept
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

if TYPE_CHECKING:
    from fedquilt.core.types import ClientId, Memory, Tree


class CheckpointFiles:
    """The files in ``checkpoint/`` of a run folder; they never change once written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FILES
        # client -> (the memory as last saved, its entry in the manifest); the reference keeps the identity meaningful
        self._saved: dict[ClientId, tuple[Memory, Entry]] = {}

    def save(self, state: Tree, memories: Mapping[ClientId, Memory]) -> tuple[Entry, dict[str, Entry]]:
        """Put the state and the memories on the disk; gives their entries, the memories' by client.

        A memory that is the same object as at the last call is not written again.

        Raises
        ------
        RunError
            if a file that is still needed is gone.
        OSError
            if the disk refuses.
        TypeError
            if the state or a memory is not a tree.
        """
        private_folder(self.folder)
        saved = {}
        for client, memory in sorted(memories.items()):
            old = self._saved.get(client)
            if old is not None and old[0] is memory:
                saved[client] = old
            else:
                saved[client] = (memory, self._store(f"client-{client:03d}", memory))
        entries = {str(client): entry for client, (_, entry) in saved.items()}
        of_state = self._store("state", state)
        self.check_lengths((of_state, *entries.values()))
        sync_folder(self.folder)
        self._saved = saved
        return of_state, entries

    def load(self, kept: Kept) -> tuple[Tree, dict[ClientId, Memory]]:
        """The state and the memories of a checkpoint, tensors on the CPU.

        Raises
        ------
        RunError
            if a file is missing or damaged.
        """
        state = self._fetch(kept.state)
        self._saved = {int(client): (self._fetch(entry), entry) for client, entry in kept.memories.items()}
        return state, {client: memory for client, (memory, _) in self._saved.items()}

    def check_lengths(self, entries: Iterable[Entry]) -> None:
        """Raise RunError if one of these files is missing or shorter or longer than it was written."""
        for entry in entries:
            path = self.folder / entry.file
            size = path.stat().st_size if path.exists() else None
            if size != entry.bytes:
                what = "is lost" if size is None else f"damaged, it has {size} bytes of {entry.bytes}"
                raise RunError(f"{path}: {what}; the checkpoint cannot be used without it; {RESTORE}")

    def delete_all_but(self, kept: Iterable[Kept]) -> None:
        """Delete what none of these checkpoints names."""
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
