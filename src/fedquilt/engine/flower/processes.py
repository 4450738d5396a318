"""Processes of a local federation: each has its own log and is ended with all its children."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedquilt.core.errors import FedquiltError
from fedquilt.core.shell import install_extra

MARK = "FEDQUILT_TRIAL"
"""The environment variable that marks a process and its children as part of a federation."""


class Started:
    """A process in its own session, with its log.

    Parameters
    ----------
    name
        The name in messages.
    words
        The command.
    log
        The file that its output is appended to.
    environment
        Its environment variables.
    mark
        The value of ``MARK`` in its environment, by which its children are found.
    """

    def __init__(self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str], mark: str) -> None:
        self.name, self.log, self.mark = name, log, mark
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:  # restarts of a node share one log
            self._from = file.tell()
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**environment, MARK: mark},
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        """The output since the process was started."""
        with open(self.log, "rb") as file:
            file.seek(self._from)
            return file.read().decode(errors="replace")

    def end(self, number: int = signal.SIGTERM, seconds: float = 15.0) -> None:
        """Send the process a signal, wait until it ends, then kill what is left of it and its children."""
        was_running = self.running
        if was_running:
            if number == signal.SIGKILL:
                self._kill_group()
            else:
                self.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        if was_running:  # otherwise the process id may have been reused
            self._kill_group()
        for left in marked(self.mark):  # Flower starts some of its children in sessions of their own
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        self.process.wait(30)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
            os.killpg(self.process.pid, signal.SIGKILL)


def wait_for(true: Callable[[], bool], process: Started, seconds: float, what: str) -> None:
    """Wait until ``true()`` holds.

    Raises
    ------
    FedquiltError
        if the process ended, or after so many seconds (see ``patience``); the message holds the end of its log.
    """
    began = time.monotonic()
    while not true():
        if not process.running:
            raise FedquiltError(f"{process.name} ended (exit code {process.process.returncode}): {tail(process)}")
        if time.monotonic() - began > patience(seconds):
            raise FedquiltError(f"{process.name}: after {seconds:g} s {what}: {tail(process)}")
        time.sleep(0.2)


def patience(seconds: float) -> float:
    """Return the seconds multiplied by the machine's load if more processes are ready to run than it has processors."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return seconds * max(1.0, 2 * load / (os.cpu_count() or 1))


def tail(process: Started, lines: int = 15) -> str:
    """Return the end of a process's log, and where the rest is."""
    return "\n".join([f"the end of {process.log} is", *process.said.strip().splitlines()[-lines:]])


def tool(name: str) -> str:
    """Return the path of one of Flower's commands: beside this Python, else on the PATH.

    Raises
    ------
    FedquiltError
        if it is in neither; the message says how to install it.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise FedquiltError(f"{name}: no such command; install Flower with: {install_extra('flower')}")
    return found


def marked(mark: str) -> list[int]:
    """Return the ids of processes with this mark, or one below it (``mark/...``); empty on systems without /proc."""
    return [pid for pid, words in _marked(mark)]


def marked_as(mark: str, word: str) -> list[int]:
    """Return those of ``marked`` whose command line contains ``word``."""
    return [pid for pid, words in _marked(mark) if word in words]


def _marked(mark: str) -> list[tuple[int, str]]:
    found, wanted = [], f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended, or belongs to another user
            if any(variable == wanted or variable.startswith(wanted + b"/") for variable in variables):
                found.append((int(entry.name), words))
    return found


def free_port() -> int:
    """Return a port of loopback on which no process listens at the moment."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def listening(port: int) -> bool:
    """Whether a process listens on a port of loopback."""
    with socket.socket() as made:
        made.settimeout(1.0)
        return made.connect_ex(("127.0.0.1", port)) == 0
