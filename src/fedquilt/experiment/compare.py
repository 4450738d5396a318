"""Comparing methods on the same data, partition and seeds; finished runs are reused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

from fedquilt.config.load import NOT_DETERMINING, Overrides, RunFile, digest, load, parse, resolved, variants
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, FedquiltError
from fedquilt.experiment.forecast import Forecast, of_all
from fedquilt.experiment.progress import Passing
from fedquilt.experiment.run import resume, run
from fedquilt.experiment.workers import in_workers
from fedquilt.record import Record, read_result, read_rounds


@dataclass(frozen=True)
class Job:
    """One run of a comparison: its label, seed, config and folder."""

    label: str
    seed: int
    config: Config
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the folder holds the finished run."""
        if not self.folder.exists():
            return False
        Record.open(self.folder, resolved(self.config), NOT_DETERMINING)  # raises an error for another run's folder
        return read_result(self.folder) is not None

    @property
    def rounds_left(self) -> int:
        """The number of rounds that are not recorded yet."""
        return self.config.rounds - (len(read_rounds(self.folder)) if self.folder.exists() else 0)


def jobs(source: RunFile, overrides: Overrides = (), objects: Mapping[str, Any] = MappingProxyType({})) -> list[Job]:
    """All runs of the comparison in a run file, by label and then by seed.

    The name of a folder ends in a digest of everything that determines the run's result, so a changed config is another
    run. ``objects`` are ``Config.objects`` of each run.
    """
    config, raw = load(source, overrides)
    changed = [key.partition("=")[0].strip() for key in overrides]
    if "seed" in changed and config.seeds:
        raise ConfigError(
            f"override 'seed={config.seed}': the comparison runs seeds = {list(config.seeds)}; set seeds instead"
        )
    found = []
    for label, variant in variants(raw):
        for seed in config.seeds or (config.seed,):
            one = parse({**variant, "seed": seed, "seeds": [], "name": config.name}).with_objects(objects)
            slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
            folder = Path(config.output) / config.name / f"{slug}-seed{seed}-{digest(one)[:8]}"
            found.append(Job(label, seed, one, folder))
    return found


def compare(
    wanted: Sequence[Job],
    *,
    workers: int = 1,
    progress: object = None,
    on_done: Callable[[Job, int, int], None] | None = None,
) -> dict[str, list[Path]]:
    """Run all jobs that are not finished, resuming stopped ones; returns the run folders of every label.

    ``progress`` receives the reports of every run (see ``experiment.Progress``), with the time that is left of all of
    them. ``workers`` processes run in parallel, each on its share of the processors unless the config sets ``threads``;
    the reports of their runs are interleaved, and none are of clients and steps.
    ``on_done`` is called after each run with the number of runs done and the number that were to do.

    Raises
    ------
    FedquiltError
        the first error of a run, with its label and seed; finished runs are kept.
    """
    missing = [job for job in wanted if not job.finished]
    every = _All(missing, workers)
    if workers <= 1:
        reporting = _OneByOne(progress, every)
        for number, job in enumerate(missing):
            reporting.number = number
            _done(job, reporting)
            every.done(number)
            if on_done:
                on_done(job, number + 1, len(missing))
    elif missing:
        if held := [name for job in missing for name in job.config.objects]:
            raise ConfigError(f"workers = {workers}: '{held[0]}' is in the memory of this process; leave workers out")
        _side_by_side(missing, workers, Passing(progress), every, on_done)
    folders: dict[str, list[Path]] = {}
    for job in wanted:
        folders.setdefault(job.label, []).append(job.folder)
    return folders


class _All:
    """The forecast of all runs of a comparison, from those of the runs that have begun."""

    def __init__(self, missing: Sequence[Job], workers: int) -> None:
        self._jobs, self._workers = missing, workers
        self._waiting = {number: (job.label, job.rounds_left) for number, job in enumerate(missing)}
        self._begun: dict[int, float] = {}
        self._done: set[int] = set()
        self._paces: dict[str, float] = {}

    def of(self, number: int, seen: Forecast) -> Forecast:
        """The forecast of all runs after that of run ``number``."""
        job = self._jobs[number]
        self._waiting.pop(number, None)
        if number not in self._done:  # reports of other processes may come late
            self._begun[number] = seen.left
        self._paces[job.label] = seen.round + seen.evaluation / job.config.evaluation.every
        return self._whole(seen)

    def done(self, number: int) -> Forecast:
        """The forecast of the other runs once a run is finished."""
        self._done.add(number)
        self._waiting.pop(number, None)
        self._begun.pop(number, None)
        return self._whole(Forecast(0.0, 0.0, 0.0))

    def _whole(self, seen: Forecast) -> Forecast:
        left = of_all([*self._begun.values()], self._paces, [*self._waiting.values()], self._workers)
        return seen._replace(left=left, runs=len(self._waiting) + len(self._begun))


class _OneByOne(Passing):
    """Passes on the reports of runs that follow one another; a forecast is of all, and nothing is said twice."""

    def __init__(self, receiver: object, every: _All) -> None:
        super().__init__(receiver)
        self.number, self._all = 0, every
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            super().say(text)

    def forecast(self, seen: Forecast) -> None:
        self._seen = self._all.of(self.number, seen)
        super().forecast(self._seen)

    def round(self, line: Mapping[str, Any]) -> None:
        super().round({**line, "seconds_left": self._seen.left, "runs_left": self._seen.runs})


def _side_by_side(
    missing: Sequence[Job],
    workers: int,
    receiver: Passing,
    every: _All,
    on_done: Callable[[Job, int, int], None] | None,
) -> None:
    """Run the jobs in worker processes; ``receiver`` receives the reports of all, with forecasts of all runs."""
    listener, one_at_a_time, finished = _OneByOne(receiver, every), Lock(), set[int]()

    def hear(number: int, report: str, words: Sequence[Any]) -> None:
        with one_at_a_time:
            listener.number = number
            getattr(listener, report)(*words)

    def done(number: int) -> None:
        with one_at_a_time:
            finished.add(number)
            receiver.forecast(every.done(number))
            receiver.runs(len(finished), len(missing))
        if on_done:
            on_done(missing[number], len(finished), len(missing))

    receiver.runs(0, len(missing))
    in_workers(missing, _done, workers, hear, done)


def _done(job: Job, progress: object) -> None:
    try:
        if job.folder.exists():
            resume(job.folder, job.config, progress)
        else:
            run(job.config, job.folder, progress, label=job.label)
    except FedquiltError as error:
        raise FedquiltError(f"'{job.label}', seed {job.seed}: {error}") from error
