"""Progress reports of a run, with estimates of the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fedquilt.config.schema import Config
from fedquilt.experiment.forecast import Forecast, Spent, Work, forecast, slow_round


class Progress(Protocol):
    """Callbacks for the progress of a run; an object that receives reports needs only those that it wants."""

    def started(self, name: str, first: int, rounds: int) -> None:
        """Report that the run ``name`` begins with round ``first`` of ``rounds``."""

    def stage(self, name: str, text: str) -> None:
        """Report what the run ``name`` is doing while no client works, such as ``"evaluating"``."""

    def client(self, exchange: str, number: int, of: int) -> None:
        """Report that client ``number`` of ``of`` has finished its part of the exchange."""

    def step(self, number: int, of: int) -> None:
        """Report that a client has made optimiser step ``number`` of ``of``."""

    def forecast(self, seen: Forecast) -> None:
        """Report a new estimate of the time that is left."""

    def say(self, text: str) -> None:
        """Report something that the user should know."""

    def round(self, line: Mapping[str, Any]) -> None:
        """Report that a round is finished and recorded.

        ``line`` is its line of the record; ``line["names"]`` are the natural ids of clients in the data, by client.
        ``line["run"]`` is the name of the run, and ``line["rounds"]`` its number of rounds: of runs in parallel, the
        reports are interleaved. ``line["seconds_left"]`` is the estimate of ``Forecast.left``, and
        ``line["runs_left"]`` its number of runs.
        """

    def ended(self, name: str) -> None:
        """Report that the run ``name`` is finished."""

    def runs(self, number: int, of: int) -> None:
        """Report that ``number`` of ``of`` runs in parallel are finished; their clients and steps are not reported."""


class Silent:
    """A Progress that ignores all reports."""

    def started(self, name: str, first: int, rounds: int) -> None: ...

    def stage(self, name: str, text: str) -> None: ...

    def client(self, exchange: str, number: int, of: int) -> None: ...

    def step(self, number: int, of: int) -> None: ...

    def forecast(self, seen: Forecast) -> None: ...

    def say(self, text: str) -> None: ...

    def round(self, line: Mapping[str, Any]) -> None: ...

    def ended(self, name: str) -> None: ...

    def runs(self, number: int, of: int) -> None: ...


class Passing:
    """A Progress that passes reports on to an object with any of the methods of ``Progress``, or to None."""

    def __init__(self, receiver: object) -> None:
        self._receiver = receiver

    def _pass(self, report: str, *words: Any) -> None:
        if (method := getattr(self._receiver, report, None)) is not None:
            method(*words)

    def started(self, name: str, first: int, rounds: int) -> None:
        self._pass("started", name, first, rounds)

    def stage(self, name: str, text: str) -> None:
        self._pass("stage", name, text)

    def client(self, exchange: str, number: int, of: int) -> None:
        self._pass("client", exchange, number, of)

    def step(self, number: int, of: int) -> None:
        self._pass("step", number, of)

    def forecast(self, seen: Forecast) -> None:
        self._pass("forecast", seen)

    def say(self, text: str) -> None:
        self._pass("say", text)

    def round(self, line: Mapping[str, Any]) -> None:
        self._pass("round", line)

    def ended(self, name: str) -> None:
        self._pass("ended", name)

    def runs(self, number: int, of: int) -> None:
        self._pass("runs", number, of)


_SETTLED = 5.0  # a first step of more seconds than this is hardly longer for having been the first


class Forecasting(Passing):
    """Adds forecasts to the reports of one run, and says once if its rounds take long.

    Parameters
    ----------
    receiver
        Receives the reports.
    clock
        Gives the time in seconds.
    """

    def __init__(self, receiver: object, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(receiver)
        self._clock = clock
        self._slow = False  # whether the user has been told that rounds take long
        self._steps_seen = False

    def begins(self, name: str, first: int, config: Config, work: Work) -> None:
        """Report that a run begins with round ``first`` and has this work to do."""
        self._config, self._work, self._spent = config, work, Spent()
        self._began = self._first = self._clock()
        self.started(name, first, config.rounds)

    def step(self, number: int, of: int) -> None:
        super().step(number, of)
        self._steps_seen = True
        steps, now = self._spent.steps + 1, self._clock()
        if steps == 1:
            self._first = now
        # the first step of all takes longer than the others
        seconds = (now - self._first) / (steps - 1) if steps > 1 else now - self._began
        if self._spent.rounds == 0:
            self._spent = self._spent._replace(step_seconds=seconds)
        self._spent = self._spent._replace(steps=steps)
        if steps > 1 or seconds > _SETTLED:
            self.forecast(self._forecast())

    def client(self, exchange: str, number: int, of: int) -> None:
        super().client(exchange, number, of)
        if not self._steps_seen and self._spent.rounds < self._work.rounds:
            # clients in other processes report no steps
            steps = self._work.round_steps * number / of
            seconds = (self._clock() - self._began) / max(1.0, steps)
            self._spent = self._spent._replace(steps=steps, step_seconds=seconds)
            self.forecast(self._forecast())

    def round(self, line: Mapping[str, Any]) -> None:
        now, spent = self._clock(), self._spent
        evaluated = line["evaluation"] is not None
        evaluation = line["evaluation_seconds"] if evaluated else 0.0
        self._spent = spent._replace(
            rounds=spent.rounds + 1,
            round_seconds=spent.round_seconds + now - self._began - evaluation,
            evaluations=spent.evaluations + evaluated,
            evaluation_seconds=spent.evaluation_seconds + evaluation,
            steps=0.0,
        )
        self._began = now
        seen = self._forecast()
        self.forecast(seen)
        super().round({**line, "seconds_left": seen.left, "runs_left": seen.runs})

    def _forecast(self) -> Forecast:
        seen = forecast(self._work, self._spent)
        if not self._slow and (text := slow_round(self._config, seen)) is not None:
            self._slow = True
            self.say(text)
        return seen
