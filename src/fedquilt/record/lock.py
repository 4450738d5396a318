"""One process at a time writes a run folder.

The lock is the operating system's own on a file in the folder, so it ends with the process that holds it, however
that process ends. While a new run is being built it lies in the draft beside the folder, which takes its name later.
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
"""Seconds to wait for a holder that may be ending just now."""

_FAR = 1 << 30  # Windows locks bytes, and nobody could read the holder's name in locked ones
_OPEN: set[int] = set()


class Hold:
    """The right to write ``folder``, or what will be a run there; valid inside ``hold``."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place = folder, place
        self._handle = _taken(folder, place / LOCK)

    def check(self) -> None:
        """Nothing, if the folder is still the one that was locked.

        Raises
        ------
        RunError
            if it was deleted, moved or replaced meanwhile.
        """
        if not _same(self._handle, self.place / LOCK):
            raise RunError(
                f"{self.place}: was deleted, moved or replaced while this run was writing it, so the run ends; what it "
                "wrote since is lost unless the folder is brought back; nothing was finished"
            )

    def move(self, folder: Path) -> None:
        """Give the locked draft the name ``folder``."""
        if os.name == "nt":  # a folder that holds an open file cannot be renamed there
            self.free(keep=True)
        os.replace(self.place, folder)
        self.place = folder
        if os.name == "nt":
            self._handle = _taken(folder, folder / LOCK)

    def free(self, keep: bool = False) -> None:
        """End the lock. Its file goes too, if it is still ours, unless ``keep``."""
        if not keep and os.name != "nt" and _same(self._handle, self.place / LOCK):
            with suppress(OSError):
                (self.place / LOCK).unlink()
        _OPEN.discard(self._handle)
        os.close(self._handle)


@contextmanager
def hold(folder: Path) -> Iterator[Hold]:
    """Hold a run folder, or the name of one that will be made, so that no other process writes it meanwhile.

    Raises
    ------
    RunError
        if another process holds it; names the process and its machine. Also if its file system keeps no locks.
    """
    place = folder if is_run(folder) else draft_of(folder)
    made = [parent for parent in place.parents if not parent.exists()]
    with explained(folder, lambda: "nothing was changed" if is_run(folder) else "no run was started", "start again"):
        place.mkdir(parents=True, exist_ok=True)
        try:
            held = Hold(folder, place)
        except FileNotFoundError as error:  # the draft has taken its name between the two steps
            raise RunError(f"{folder}: another process has just begun a run there; choose another name") from error
    try:
        yield held
    finally:
        unused = held.place != folder
        held.free()
        if unused:
            shutil.rmtree(held.place, ignore_errors=True)
            with suppress(OSError):  # others may have put something there
                for parent in made:
                    parent.rmdir()


def draft_of(folder: Path) -> Path:
    """Where a new run is made before it takes the name ``folder``."""
    return folder.parent / f".{folder.name}.creating"


def holder(folder: Path) -> str | None:
    """Who writes a run folder now, in words; None if nobody does."""
    path = folder / LOCK
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:  # no such file: nobody ever did
        return None
    try:
        return None if _lock(handle) else _named(path)
    finally:
        os.close(handle)


def _taken(folder: Path, path: Path) -> int:
    """The handle of the locked file at ``path``."""
    end = time.monotonic() + PATIENCE
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _lock(handle) and _same(handle, path):  # else it was unlinked or renamed between the two steps
                os.ftruncate(handle, 0)
                words = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
                os.write(handle, json.dumps(words).encode())
                _OPEN.add(handle)
                return handle
            if time.monotonic() > end:
                raise RunError(
                    f"{folder}: is being written by {_named(path)}; one process at a time may write a run; wait until "
                    "it has ended, or end it, then try again"
                )
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(0.05)


def _lock(handle: int) -> bool:
    """Whether the file is now locked for this handle; False if it is for another."""
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
            f"this file system keeps no locks ({error.strerror}), so two processes could write one run; "
            "put the run on another one: set output or --folder"
        ) from error
    return True


def _same(handle: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _named(path: Path) -> str:
    try:
        words = json.loads(path.read_bytes())
        return f"process {int(words['pid'])} on {words['host']} (since {words['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _let_go() -> None:
    """A process that is forked shares its parent's locks, which must end with the parent."""
    for handle in _OPEN:
        os.close(handle)
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
