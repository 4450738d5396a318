"""Progress reports of a run: printed lines, a function, or an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedquilt.core.errors import ConfigError
from fedquilt.report.round_text import dropped_texts, round_text

Watcher = Any
"""``None``, ``True``, a function of a round's record, or an object with the methods of ``experiment.run.Progress``."""

_METHODS = ("started", "client", "step", "round")


class EachRound:
    """A progress that calls a function with the record of each finished round, and reports nothing else."""

    def __init__(self, on_round: Callable[[Mapping[str, Any]], Any]) -> None:
        self.on_round = on_round

    def started(self, name: str, first: int, rounds: int) -> None: ...

    def client(self, exchange: str, number: int, of: int) -> None: ...

    def step(self, number: int, of: int) -> None: ...

    def round(self, line: Mapping[str, Any]) -> None:
        self.on_round(line)


class PrintedRounds(EachRound):
    """A progress that prints one line for each finished round and one for each dropped reply."""

    def __init__(self) -> None:
        super().__init__(self._print)
        self.name, self.total = "", 0

    def started(self, name: str, first: int, rounds: int) -> None:
        self.name, self.total = name, rounds

    def _print(self, line: Mapping[str, Any]) -> None:
        for text in (*dropped_texts(line), round_text(line)):
            print(f"{self.name}: round {line['round'] + 1}/{self.total}: {text}", flush=True)


def progress_of(given: Watcher) -> Any:
    """The object that receives a run's reports, or None.

    Raises
    ------
    ConfigError
        if ``given`` is not a ``Watcher``.
    """
    if given is None or given is False:
        return None
    if given is True:
        return PrintedRounds()
    if all(callable(getattr(given, name, None)) for name in _METHODS):
        return given
    if callable(given):
        return EachRound(given)
    raise ConfigError(
        f"progress = {given!r}: must be True (a printed line for each round), a function of a round's record, or an "
        f"object with the methods {', '.join(_METHODS)}"
    )
