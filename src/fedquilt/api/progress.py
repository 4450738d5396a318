"""Progress reports of a run: printed lines, a function, or an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedquilt.core.errors import ConfigError
from fedquilt.experiment.progress import Silent
from fedquilt.report.round_text import notices, round_text

Watcher = Any
"""``None``, ``True``, a function of a round's record, or an object with methods of ``experiment.Progress``."""

_METHODS = tuple(name for name in vars(Silent) if not name.startswith("_"))


class EachRound(Silent):
    """A progress that calls a function with the record of each finished round, and reports nothing else."""

    def __init__(self, on_round: Callable[[Mapping[str, Any]], Any]) -> None:
        self.on_round = on_round

    def round(self, line: Mapping[str, Any]) -> None:
        self.on_round(line)


class PrintedRounds(Silent):
    """A progress that prints one line for each finished round, with the time left, and one for each dropped reply."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def round(self, line: Mapping[str, Any]) -> None:
        for text in (*notices(line), round_text(line)):
            print(f"{line['run']}: round {line['round'] + 1}/{line['rounds']}: {text}", flush=True)


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
    if any(callable(getattr(given, name, None)) for name in _METHODS):
        return given
    if callable(given):
        return EachRound(given)
    raise ConfigError(
        f"progress = {given!r}: must be True (a printed line for each round), a function of a round's record, or an "
        f"object with some of the methods {', '.join(_METHODS)}"
    )
