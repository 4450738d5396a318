"""Atomic and durable writes: after a crash or a power failure a file is complete or absent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Permissions of files and folders that only their owner may read."""


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write ``content`` to ``path`` atomically; the name is durable once the folder is synced too.

    A ``private`` file is readable only by its owner, from its first byte on.
    """
    write_pieces(path.parent, path.name, (content,), lambda: path.name, private=private)


def write_pieces(
    folder: Path, label: str, pieces: Iterable[bytes | memoryview], name: Callable[[], str], *, private: bool = False
) -> None:
    """Write a file piece by piece as ``write_bytes`` does, under a name that may depend on what was written.

    Parameters
    ----------
    folder, label
        The folder, and the name of the file until it is whole, without the ending ``.part``.
    pieces
        The content in order; no piece is held after it has been written.
    name
        Gives the file's name once all pieces are written.
    private
        Whether only its owner may read the file.
    """
    part, path = folder / f"{label}.part", folder / label
    try:
        if private:
            part.unlink(missing_ok=True)  # one that was left behind may have other permissions
        with open(part, "wb", opener=_private if private else None) as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / name())
    except OSError as error:
        with suppress(OSError):  # the first error is the one to report
            part.unlink(missing_ok=True)
        if error.filename == str(part):
            error.filename = str(path)  # the file that the user knows
        raise


def append_bytes(path: Path, content: bytes) -> None:
    """Append ``content`` to the file and sync it to the disk."""
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def cut_bytes(path: Path, size: int) -> None:
    """Truncate the file to ``size`` bytes and sync it to the disk."""
    with open(path, "r+b") as file:
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync the folder itself, so that the names of its files are durable."""
    if os.name == "nt":  # Windows has no handle on a folder to sync
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Sync everything in ``folder`` to the disk, contents and names."""
    for inside, _, names in os.walk(folder):
        for name in names:
            with open(Path(inside) / name, "r+b" if os.name == "nt" else "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(inside))


def private_folder(folder: Path) -> None:
    """Create the folder and its missing parents, readable only by their owner.

    If the folder exists, its permissions are restricted to its owner.
    """
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
    folder.chmod(PRIVATE_FOLDER)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, PRIVATE_FILE)
