"""Runs that go on in other processes: what is new in their folders, in words and as a page; it only reads there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple

from fedquilt.core.errors import FedquiltError
from fedquilt.core.shell import command
from fedquilt.record.lock import holder
from fedquilt.record.manifest import MANIFEST
from fedquilt.record.read import CONFIG, RESULT, is_run, read_config, read_result, read_rounds
from fedquilt.report.round_text import round_text
from fedquilt.report.runs import group_runs, read_run

WAITING, RUNNING, STOPPED, FINISHED = "waiting", "running", "stopped", "finished"
"""The states of a run, of which several have the first that one of them has."""

_TRIES = 3  # times that a record is read again that could not be read, as while it was being written

_STRICT = "default-src 'none'; style-src 'unsafe-inline'"
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')


class Seen(NamedTuple):
    """What was seen last: a number that grows with every change, the state of the runs, and the same in words."""

    version: int
    state: str
    text: str


class Page(NamedTuple):
    """A page as bytes of HTML, and the policy that it states, of what a browser may load and run."""

    content: bytes
    policy: str


class Following:
    """The runs in ``folders``, which need not exist yet.

    Raises
    ------
    RunError
        if a folder exists and holds something else than a run.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        for folder in self.folders:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                read_config(folder)
        self._signature: object = None
        self._failures = 0
        self.seen = Seen(0, WAITING, "")

    def look(self) -> Seen:
        """Look whether the record of a run has changed, by its files' sizes and times, and read it only then."""
        now = tuple(_signature(folder) for folder in self.folders)
        if now != self._signature:
            self._signature, self._failures = now, 0
        elif not 0 < self._failures < _TRIES:
            return self.seen
        try:
            found = [_state(folder) for folder in self.folders]
            self._failures = 0
        except FedquiltError as error:
            self._failures += 1
            if self._failures < _TRIES:
                return self.seen
            found = [(STOPPED, str(error))]
        except Exception as error:  # a record of a strange form must not end what follows other runs, too
            found = [(STOPPED, f"a record cannot be read: unexpected {type(error).__name__}: {error}")]
        state = min((one for one, _ in found), key=[RUNNING, WAITING, STOPPED, FINISHED].index)
        text = "; ".join(text for _, text in found)
        if (state, text) != self.seen[1:]:
            self.seen = Seen(self.seen.version + 1, state, text)
        return self.seen

    def page(self) -> Page:
        """Return the report page of the runs with a finished round, or one that says why there is none yet."""
        from fedquilt.report.page import page  # imports what draws

        try:
            runs = [read_run(folder) for folder in self.folders if is_run(folder) and read_rounds(folder)]
            if not runs:
                return _message(self.seen.text or "Waiting for the first round.")
            content = page(group_runs(runs))
        except FedquiltError as error:
            return _message(str(error))
        except Exception as error:  # the next round may be drawn again, and the reader is told
            return _message(f"The report could not be made: unexpected {type(error).__name__}: {error}")
        stated = _POLICY.search(content)
        return Page(content.encode("utf-8", "replace"), _unescaped(stated[1]) if stated else _STRICT)


def _signature(folder: Path) -> object:
    """What changes whenever a run's record does: sizes and times of its files, and whether it is being written.

    A round is recorded once the manifest has it, which is written after its line.
    """
    return (*(_size_and_time(folder / name) for name in (CONFIG, MANIFEST, RESULT)), holder(folder) is None)


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _state(folder: Path) -> tuple[str, str]:
    """The state of a run, and what is to be said of it."""
    if not is_run(folder):
        return WAITING, f"{folder}: {'no run is' if folder.exists() else 'does not exist'} there yet; waiting for it"
    rounds, total = read_rounds(folder), read_config(folder)["rounds"]
    if read_result(folder) is not None:
        return FINISHED, f"{folder}: finished after {total} rounds: {round_text(rounds[-1], brief=True)}"
    if not rounds:
        done = f"{folder}: no round is finished yet"
    else:
        done = f"{folder}: round {len(rounds)} of {total}: {round_text(rounds[-1], brief=True)}"
    if holder(folder) is None:
        return STOPPED, f"{done}; no process is writing it; to go on: {command('run', '--resume', folder)}"
    return RUNNING, done


def _message(text: str) -> Page:
    style = "html { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }"
    return Page(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>fedquilt</title>\n'
            f"<style>{style}</style>\n</head>\n<body>\n<p>{escape(text)}</p>\n</body>\n</html>\n"
        ).encode("utf-8", "replace"),
        _STRICT,
    )


def _unescaped(text: str) -> str:
    """The policy as a header: one line of ASCII."""
    return " ".join(unescape(text).encode("ascii", "ignore").decode().split())
