"""Files that are whole or not there, and stay so when the power goes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Rights of what nobody but its owner may read."""


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Put ``content`` at ``path`` in one step; its name is safe once the folder is synced too.

    ``private`` files may be read by their owner alone, from their first byte on.
    """
    part = path.with_name(path.name + ".part")
    try:
        if private:
            part.unlink(missing_ok=True)  # one that was left behind may have other rights
        with open(part, "wb", opener=_private if private else None) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):  # what went wrong first is what the user must hear
            part.unlink(missing_ok=True)
        if error.filename == str(part):
            error.filename = str(path)  # the one that the user knows
        raise


def append_bytes(path: Path, content: bytes) -> None:
    """Put ``content`` at the end of the file; it is on the disk when this returns."""
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def cut_bytes(path: Path, size: int) -> None:
    """Cut the file off behind ``size`` bytes, on the disk when this returns."""
    with open(path, "r+b") as file:
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names of the files in ``folder`` safe on the disk."""
    if os.name == "nt":  # Windows has no handle on a folder to sync
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make everything in ``folder`` safe on the disk, contents and names."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(Path(place) / name, "r+b" if os.name == "nt" else "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def private_folder(folder: Path) -> None:
    """Make the folder, and its parents, if it is not there; nobody but its owner may look into it, and into those made.

    A folder that is there already is closed to others.
    """
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
    folder.chmod(PRIVATE_FOLDER)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, PRIVATE_FILE)
