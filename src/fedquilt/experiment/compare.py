"""Comparing methods on the same data, partition and seeds; finished runs are reused."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import MappingProxyType
from typing import Any

import torch

from fedquilt.config.load import NOT_DETERMINING, Overrides, RunFile, digest, load, parse, resolved, variants
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, FedquiltError
from fedquilt.experiment.forecast import Forecast, of_all
from fedquilt.experiment.progress import Passing
from fedquilt.experiment.run import resume, run
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
    them. ``workers`` processes run in parallel, each on its share of the cores unless the config sets ``threads``.
    ``on_done`` is called after each run with the number of runs done and the number that were to do.

    Raises
    ------
    FedquiltError
        the first error of a run, with its label and seed; finished runs are kept.
    """
    missing = [job for job in wanted if not job.finished]
    if workers <= 1:
        told = _OneByOne(progress, missing)
        for number, job in enumerate(missing, start=1):
            _done(job, told)
            if on_done:
                on_done(job, number, len(missing))
    elif missing:
        if held := [name for job in missing for name in job.config.objects]:
            raise ConfigError(f"workers = {workers}: '{held[0]}' is in the memory of this process; leave workers out")
        _side_by_side(missing, workers, on_done)
    folders: dict[str, list[Path]] = {}
    for job in wanted:
        folders.setdefault(job.label, []).append(job.folder)
    return folders


class _OneByOne(Passing):
    """Passes on the reports of runs that follow one another; a forecast is of all that are not finished."""

    def __init__(self, told: object, missing: Sequence[Job]) -> None:
        super().__init__(told)
        self._waiting = [*missing]
        self._paces: dict[str, float] = {}

    def started(self, name: str, first: int, rounds: int) -> None:
        self._running = self._waiting.pop(0)
        super().started(name, first, rounds)

    def forecast(self, seen: Forecast) -> None:
        label, config = self._running.label, self._running.config
        self._paces[label] = seen.round + seen.evaluation / config.evaluation.every
        waiting = [(job.label, job.rounds_left) for job in self._waiting]
        self._seen = seen._replace(left=of_all({label: seen.left}, self._paces, waiting), runs=1 + len(waiting))
        super().forecast(self._seen)

    def round(self, line: Mapping[str, Any]) -> None:
        super().round({**line, "seconds_left": self._seen.left, "runs_left": self._seen.runs})


def _side_by_side(missing: Sequence[Job], workers: int, on_done: Callable[[Job, int, int], None] | None) -> None:
    threads = max(1, (os.cpu_count() or 1) // workers)
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_worker, initargs=(threads,))
    with pool:
        with _ignoring_interrupts():  # the worker processes inherit this: only this process handles Ctrl-C
            futures = {pool.submit(_done, job, None): job for job in missing}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                future.result()
                if on_done:
                    on_done(futures[future], number, len(missing))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # an interrupt: any stopped run can be resumed
                for child in set(active_children()) - others:
                    child.terminate()
                    child.join()
            raise


def _worker(threads: int) -> None:
    """Initialise a worker process: set its threads, and make it end when its parent ends, even if that is killed."""
    torch.set_num_threads(threads)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()  # returns however the parent ends: the operating system closes their pipe
            os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if current_thread() is not main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _done(job: Job, progress: object) -> None:
    try:
        if job.folder.exists():
            resume(job.folder, job.config, progress)
        else:
            run(job.config, job.folder, progress, label=job.label)
    except FedquiltError as error:
        raise FedquiltError(f"'{job.label}', seed {job.seed}: {error}") from error
