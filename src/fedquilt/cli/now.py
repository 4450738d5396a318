"""What runs are doing now, in words, and a line of it now and then for a terminal that cannot show bars."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import Event, Thread
from typing import Any

from fedquilt.report.round_text import duration, left_text

EVERY = 10.0
"""Seconds without a line after which one is printed."""

_LONGEST = 300.0  # seconds between two such lines, at most
_PART = 20  # of the time that has passed: a run of days prints no line every ten seconds
_LATE = -10.0  # seconds after the estimated end


def now_left(seconds: float, runs: int = 1) -> str:
    """Return a text of the time left, also where it is short or the estimate was."""
    if seconds < _LATE:
        return "longer than estimated"
    return left_text(seconds, runs) or "a few seconds left"


class Now:
    """What runs are doing by their latest reports, which are those of ``experiment.Progress``."""

    def __init__(self) -> None:
        self._rounds: dict[str, tuple[int, int]] = {}
        self._doing: dict[str, str] = {}  # by the name of a run
        self._client, self._finished = "", ""

    def started(self, name: str, first: int, rounds: int) -> None:
        self._rounds[name] = (first, rounds)
        self._doing.pop(name, None)

    def stage(self, name: str, text: str) -> None:
        self._doing[name] = text

    def client(self, exchange: str, number: int, of: int) -> None:
        self._work(f"{number} of {of} clients have done their part ({exchange})")

    def step(self, number: int, of: int) -> None:
        self._work(f"{self._client}{', ' if self._client else ''}step {number} of {of}", keep=True)

    def runs(self, number: int, of: int) -> None:
        self._finished = f"{number} of {of} runs finished"

    def round(self, line: Mapping[str, Any]) -> None:
        self._rounds[line["run"]] = (line["round"] + 1, line["rounds"])
        self._doing.pop(line["run"], None)
        self._client = ""

    def ended(self, name: str) -> None:
        self._rounds.pop(name, None)
        self._doing.pop(name, None)

    def text(self) -> str:
        """Return all of it in one line; empty if nothing was reported."""
        names = [*dict.fromkeys([*self._rounds, *self._doing])]
        return "; ".join(filter(None, [self._finished, *map(self._of, names)]))

    def _of(self, name: str) -> str:
        """What one run is doing."""
        done, of = self._rounds.get(name, (0, 0))
        round = f"round {min(done + 1, of)}/{of}" if of else ""
        return ": ".join(filter(None, [name, round, self._doing.get(name, "")]))

    def _work(self, text: str, keep: bool = False) -> None:
        """Note what clients are doing, of the only run that reports it; ``keep`` the number of clients done."""
        self._client = self._client if keep else text
        if self._rounds:
            self._doing[next(reversed(self._rounds))] = text


class Heartbeat:
    """Prints a line whenever none has been printed for a while.

    Parameters
    ----------
    words
        Gives the text of the line; empty for no line.
    say
        Prints a line.
    every
        Seconds without a line after which one is printed, at first; later a twentieth of the time since the start if
        that is longer, and at most five minutes.
    """

    def __init__(self, words: Callable[[], str], say: Callable[[str], None], every: float = EVERY) -> None:
        self._words, self._say, self._every = words, say, every
        self._over = Event()
        self._thread = Thread(target=self._go_on, daemon=True)
        self._began = self._due = time.monotonic()

    def start(self) -> None:
        """Begin to watch."""
        self._began = time.monotonic()
        self.reset()
        self._thread.start()

    def reset(self) -> None:
        """Take note that a line has been printed."""
        now = time.monotonic()
        self._due = now + max(self._every, min(_LONGEST, (now - self._began) / _PART))

    def stop(self) -> None:
        """Print nothing any more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def _go_on(self) -> None:
        while not self._over.wait(self._due - time.monotonic()):
            now = time.monotonic()
            if now < self._due:  # another line was printed meanwhile
                continue
            self.reset()
            if text := self._words():
                self._say(f"{text}, {duration(now - self._began)} so far")
