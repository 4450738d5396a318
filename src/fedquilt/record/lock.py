"""The lock on a run folder: one process at a time writes it.

It is the operating system's lock on a file in the folder, so it ends with the process that holds it, however that
process ends. While a new run is being made, the lock is in the draft folder, which is later renamed to the run folder.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from fedquilt.core.errors import RunError
from fedquilt.record.files import explained
from fedquilt.record.read import is_run

LOCK = ".lock"
PATIENCE = 2.0
"""Seconds to wait for a holder that may be about to end."""

_FAR = 1 << 30  # Windows locks bytes, and locked bytes cannot be read; the holder's name is at the beginning
_OPEN: set[int] = set()


class Hold:
    """A held lock on the run ``folder``, or on its draft at ``path``; valid inside ``hold``."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder, self.path = folder, path
        self._handle = _acquire(folder, path / LOCK)

    def check(self) -> None:
        """Raise RunError if the locked folder has been deleted, moved or replaced."""
        if not _same(self._handle, self.path / LOCK):
            raise RunError(
                f"{self.path}: was deleted, moved or replaced while this run was writing it, so the run ends; what it "
                "wrote since is lost unless the folder is brought back; nothing was finished"
            )

    def move(self, folder: Path) -> None:
        """Rename the locked draft to ``folder``."""
        if os.name == "nt":  # a folder that holds an open file cannot be renamed there
            self.free(keep=True)
        os.replace(self.path, folder)
        self.path = folder
        if os.name == "nt":
            self._handle = _acquire(folder, folder / LOCK)

    def free(self, keep: bool = False) -> None:
        """Release the lock; its file is deleted if it is still this one, unless ``keep``."""
        if not keep and os.name != "nt" and _same(self._handle, self.path / LOCK):
            with suppress(OSError):
                (self.path / LOCK).unlink()
        _OPEN.discard(self._handle)
        os.close(self._handle)


@contextmanager
def hold(folder: Path) -> Iterator[Hold]:
    """Lock a run folder, or the name of a new one, so that no other process writes it inside the block.

    Raises
    ------
    RunError
        if another process holds the lock (the error names it and its machine), or the file system has no locks.
    """
    path = folder if is_run(folder) else draft_of(folder)
    made = [parent for parent in path.parents if not parent.exists()]
    with explained(folder, lambda: "nothing was changed" if is_run(folder) else "no run was started", "start again"):
        path.mkdir(parents=True, exist_ok=True)
        try:
            held = Hold(folder, path)
        except FileNotFoundError as error:  # another process renamed the draft between the two steps
            raise RunError(f"{folder}: another process has just begun a run there; choose another name") from error
    try:
        yield held
    finally:
        unused = held.path != folder
        held.free()
        if unused:
            shutil.rmtree(held.path, ignore_errors=True)
            with suppress(OSError):  # they may hold other files by now
                for parent in made:
                    parent.rmdir()


def draft_of(folder: Path) -> Path:
    """The path at which a new run is made before it is renamed to ``folder``."""
    return folder.parent / f".{folder.name}.creating"


def holder(folder: Path) -> str | None:
    """The process that holds the lock on a run folder, as text; None if no process does."""
    path = folder / LOCK
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:  # no such file: the folder was never locked
        return None
    try:
        return None if _lock(handle) else _holder_text(path)
    finally:
        os.close(handle)


def _acquire(folder: Path, path: Path) -> int:
    """Lock the file at ``path``, made where missing; returns its handle."""
    end = time.monotonic() + PATIENCE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _lock(handle) and _same(handle, path):  # not same: it was unlinked or renamed between the two steps
                os.ftruncate(handle, 0)
                owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
                os.write(handle, json.dumps(owner).encode())
                _OPEN.add(handle)
                return handle
            if time.monotonic() > end:
                raise RunError(
                    f"{folder}: is being written by {_holder_text(path)}; one process at a time may write a run; wait "
                    "until it has ended, or end it, then try again"
                )
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(0.05)


def _lock(handle: int) -> bool:
    """Try to lock the file for this handle; False if another handle holds the lock."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise RunError(
            f"this file system does not support file locks ({error.strerror}), so two processes could write one run; "
            "put the run on another file system: set output or --folder"
        ) from error
    return True


def _same(handle: int, path: Path) -> bool:
    """Whether an open file is the one at this path now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _holder_text(path: Path) -> str:
    try:
        owner = json.loads(path.read_bytes())
        return f"process {int(owner['pid'])} on {owner['host']} (since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _close_inherited() -> None:
    """Close the lock files that a forked child shares with its parent, so that the locks end with the parent."""
    for handle in _OPEN:
        os.close(handle)
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
