"""Checkpoint files: the server's state and the clients' memories, named by their content hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedquilt.core.disk import private_folder, sync_folder, write_pieces
from fedquilt.core.errors import RunError
from fedquilt.record.files import read_bytes
from fedquilt.record.manifest import FILES, RESTORE, Entry, Kept
from fedquilt.record.tree_bytes import tree_from_bytes, tree_pieces

if TYPE_CHECKING:
    from fedquilt.core.types import ClientId, Memory, Tree


MOST = 64
"""The largest number of files with memories; with more, the smaller half of them is written again as one."""


class Saved(NamedTuple):
    """Files that were written for a checkpoint.

    Attributes
    ----------
    state
        The server's state.
    packs
        The memories of all clients, oldest first.
    held
        The memories that the last pack holds; none if no memory has changed.
    """

    state: Entry
    packs: tuple[Entry, ...]
    held: Mapping[ClientId, Memory]


class _Pack(NamedTuple):
    """How many memories a pack holds, and the clients whose newest memory is in it."""

    number: int
    newest: set[ClientId]


class CheckpointFiles:
    """The files in ``checkpoint/`` of a run folder; they never change once written.

    The memories that a round changes are written to one file, a *pack*, whatever the number of clients that sat out. A
    pack stays as long as a memory in it is its client's newest. What is still needed of a pack is written again
    together with the round's memories if that is less than half of it, so that at most half of the disk space is lost
    to older memories, or if there are too many packs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FILES
        # of the current checkpoint: holding the memories themselves keeps their identity meaningful
        self._memories: dict[ClientId, Memory] = {}
        self._place: dict[ClientId, Entry] = {}  # the pack with the client's newest memory
        self._packs: dict[Entry, _Pack] = {}

    def save(self, state: Tree, memories: Mapping[ClientId, Memory]) -> Saved:
        """Write the state, and the memories that have changed, to disk.

        A memory that is the same object as in the current checkpoint has not changed. The files become the current
        checkpoint with ``confirm``, once the manifest names them.

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
        if not self._memories.keys() <= memories.keys():  # one that is gone must not come back from an older pack
            self._forget()
        changed = {client: memory for client, memory in memories.items() if self._memories.get(client) is not memory}
        stay = self._staying(changed)
        moved = (client for entry, pack in self._packs.items() if entry not in stay for client in pack.newest)
        held = {client: memories[client] for client in sorted({*changed, *moved})}
        made = [self._store("memories", {str(client): memory for client, memory in held.items()})] if held else []
        saved = Saved(self._store("state", state), (*(entry for entry in stay if entry not in made), *made), held)
        self.check_lengths((saved.state, *saved.packs))
        sync_folder(self.folder)
        return saved

    def confirm(self, saved: Saved) -> None:
        """Note that the manifest names these files: until then they may be deleted, so their memories are rewritten."""
        if saved.held:
            self._hold(saved.packs[-1], saved.held)
        self._packs = {entry: self._packs[entry] for entry in saved.packs}

    def load(self, kept: Kept) -> tuple[Tree, dict[ClientId, Memory]]:
        """Load the state and the memories of a checkpoint, tensors on the CPU.

        Raises
        ------
        RunError
            if a file is missing or damaged.
        """
        state = self._fetch(kept.state)
        self._forget()
        for entry in kept.packs:
            held = {int(client): memory for client, memory in self._fetch(entry).items()}
            self._hold(entry, held)
        # of format 3: they count as changed, and are in the next checkpoint's pack
        single = {int(client): self._fetch(entry) for client, entry in kept.memories.items()}
        return state, {**self._memories, **single}

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

    def _staying(self, changed: Collection[ClientId]) -> list[Entry]:
        """The packs that are not written again, oldest first."""
        lost = Counter(self._place[client] for client in changed if client in self._place)
        stay = [entry for entry, pack in self._packs.items() if 2 * (len(pack.newest) - lost[entry]) >= pack.number]
        if len(stay) < MOST:
            return stay
        large = set(sorted(stay, key=lambda entry: entry.bytes)[MOST // 2 :])
        return [entry for entry in stay if entry in large]

    def _hold(self, entry: Entry, held: Mapping[ClientId, Memory]) -> None:
        """Note a pack that is newer than all others."""
        for client in held.keys() & self._place.keys():
            self._packs[self._place[client]].newest.discard(client)
        self._packs[entry] = _Pack(len(held), set(held))
        self._place |= dict.fromkeys(held, entry)
        self._memories |= held

    def _forget(self) -> None:
        """Forget what is on disk, so that all memories are written."""
        self._memories, self._place, self._packs = {}, {}, {}

    def _store(self, name: str, tree: Tree) -> Entry:
        sha256, size = hashlib.sha256(), 0

        def file_of() -> str:
            return f"{name}-{sha256.hexdigest()[:16]}.safetensors"

        def noted() -> Iterator[bytes | memoryview]:
            nonlocal size
            for piece in tree_pieces(tree, name):
                sha256.update(piece)
                size += len(piece)
                yield piece

        # the name holds the content's hash: a file the current manifest names is never overwritten by other bytes
        write_pieces(self.folder, name, noted(), file_of, private=True)
        return Entry(file_of(), sha256.hexdigest(), size)

    def _fetch(self, entry: Entry) -> Tree:
        path = self.folder / entry.file
        return tree_from_bytes(read_bytes(path, entry.sha256, f"the checkpoint cannot be used; {RESTORE}"))
