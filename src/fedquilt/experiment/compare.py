"""Several methods on the same data, split and seeds: what is missing is run, what is there is reused."""

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

from fedquilt.config.load import NOT_DETERMINING, Overrides, Source, digest, load, parse, resolved, variants
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, FedquiltError
from fedquilt.experiment.engine import Progress
from fedquilt.experiment.run import resume, run
from fedquilt.record import Record, read_result


@dataclass(frozen=True)
class Job:
    """One run of a comparison: a label, a seed, and the folder that holds the run or will."""

    label: str
    seed: int
    config: Config
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the folder holds this run, finished."""
        if not self.folder.exists():
            return False
        Record.open(self.folder, resolved(self.config), NOT_DETERMINING)  # refuses another run's folder
        return read_result(self.folder) is not None


def jobs(source: Source, overrides: Overrides = (), objects: Mapping[str, Any] = MappingProxyType({})) -> list[Job]:
    """Every run that the comparison of a run file consists of, label by label, seed by seed.

    ``objects`` are ``Config.objects`` of each.
    A folder's name ends in the digest of what determines the run's result, so a changed config is another run.
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
    progress: Progress | None = None,
    told: Callable[[Job, int, int], None] | None = None,
) -> dict[str, list[Path]]:
    """The run folders of every label, after all that was missing has been run; stopped runs are resumed.

    ``workers`` processes run side by side, each on its share of the cores unless the config sets ``threads``. ``told``
    is called as each missing run ends, with the number that are done and the number there were to do.

    Raises
    ------
    FedquiltError
        the first failure of a run, with the run's label and seed; what finished stays.
    """
    missing = [job for job in wanted if not job.finished]
    if workers <= 1:
        for number, job in enumerate(missing, start=1):
            _done(job, progress)
            if told:
                told(job, number, len(missing))
    elif missing:
        if held := [name for job in missing for name in job.config.objects]:
            raise ConfigError(f"workers = {workers}: '{held[0]}' is in the memory of this process; leave workers out")
        _side_by_side(missing, workers, told)
    folders: dict[str, list[Path]] = {}
    for job in wanted:
        folders.setdefault(job.label, []).append(job.folder)
    return folders


def _side_by_side(missing: Sequence[Job], workers: int, told: Callable[[Job, int, int], None] | None) -> None:
    threads = max(1, (os.cpu_count() or 1) // workers)
    strangers = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_worker, initargs=(threads,))
    with pool:
        with _deaf_to_interrupts():  # processes that begin here stay so: Ctrl-C is this process's to answer
            futures = {pool.submit(_done, job, None): job for job in missing}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                future.result()
                if told:
                    told(futures[future], number, len(missing))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # an interrupt; a run that is stopped anywhere can be resumed
                for child in set(active_children()) - strangers:
                    child.terminate()
                    child.join()
            raise


def _worker(threads: int) -> None:
    """What a process of the pool does first: from now on it ends with the one that started it, killed or not."""
    torch.set_num_threads(threads)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()  # returns however the parent ends: the operating system closes what they are joined by
            os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    if current_thread() is not main_thread():  # only the main thread may say what becomes of a signal
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _done(job: Job, progress: Progress | None) -> None:
    try:
        if job.folder.exists():
            resume(job.folder, job.config, progress)
        else:
            run(job.config, job.folder, progress, label=job.label)
    except FedquiltError as error:
        raise FedquiltError(f"'{job.label}', seed {job.seed}: {error}") from error
