"""Runs in worker processes, whose progress is reported to the process that started them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context, parent_process
from threading import Event, Thread
from typing import Any

from fedquilt.core.interrupts import uninterrupted
from fedquilt.experiment.forecast import Forecast
from fedquilt.experiment.progress import Silent
from fedquilt.experiment.threads import share_threads

_OFTEN = 1.0  # seconds between two forecasts of a worker
_PATIENCE = 5.0  # seconds to wait for the last reports of a worker that is done
_LAST = "last"  # follows all reports of a job


def in_workers(
    jobs: Sequence[Any],
    work: Callable[[Any, object], None],
    workers: int,
    hear: Callable[[int, str, Sequence[Any]], None],
    done: Callable[[int], None],
) -> None:
    """Do jobs in worker processes, which share the processors.

    Parameters
    ----------
    jobs
        The jobs, which travel to the workers.
    work
        Does a job, and reports to the ``Progress`` that it is given; a function of a module.
    workers
        Number of processes.
    hear
        Receives the number of a job and a report of it: the name of a method of ``Progress`` and its arguments. Called
        in a thread.
    done
        Called with the number of each job that is done, after all of its reports.

    Raises
    ------
    Exception
        the first of a job, or of ``hear``; jobs that have not begun are given up.
    """
    others, context = set(active_children()), get_context("spawn")
    reports = context.SimpleQueue()
    heard, failed = [Event() for _ in jobs], list[Exception]()

    def listen() -> None:
        while (report := reports.get()) is not None:
            number, name, words = report
            if name == _LAST:
                heard[number].set()
            elif not failed:
                try:
                    hear(number, name, words)
                except Exception as error:  # raised in the main thread when the next job is done
                    failed.append(error)

    listener = Thread(target=listen, daemon=True)  # may wait for ever for a worker that was killed while it reported
    listener.start()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_worker, initargs=(workers, reports))
    with pool:
        with uninterrupted():  # the worker processes inherit this: only this process handles Ctrl-C
            futures = {pool.submit(_in_worker, number, work, job): number for number, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                future.result()
                heard[futures[future]].wait(_PATIENCE)
                if failed:
                    raise failed[0]
                done(futures[future])
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # an interrupt: any stopped run can be resumed
                for child in set(active_children()) - others:
                    child.terminate()
                    child.join()
            raise
    reports.put(None)
    listener.join(_PATIENCE)


class Sent(Silent):
    """A Progress in a worker process, which sends what it is told to the main process; clients and steps it does not.

    Parameters
    ----------
    number
        The number of the job.
    send
        Sends a report.
    clock
        Gives the time in seconds.
    """

    def __init__(
        self,
        number: int,
        send: Callable[[tuple[int, str, tuple[Any, ...]]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._number, self._send, self._clock = number, send, clock
        self._last = float("-inf")
        self._seen: Forecast | None = None

    def started(self, name: str, first: int, rounds: int) -> None:
        self._tell("started", name, first, rounds)

    def stage(self, name: str, text: str) -> None:
        self._tell("stage", name, text)

    def say(self, text: str) -> None:
        self._tell("say", text)

    def forecast(self, seen: Forecast) -> None:
        self._seen = seen
        if self._clock() - self._last > _OFTEN:
            self._last = self._clock()
            self._tell("forecast", seen)

    def round(self, line: Mapping[str, Any]) -> None:
        if self._seen is not None:  # it is of this round, and the line is given the time left of all runs by it
            self._tell("forecast", self._seen)
        self._tell("round", line)

    def ended(self, name: str) -> None:
        self._tell("ended", name)

    def _tell(self, report: str, *words: Any) -> None:
        self._send((self._number, report, words))


_reports: Any = None
"""In a worker process: the queue to the main process, set when the worker starts."""


def _in_worker(number: int, work: Callable[[Any, object], None], job: Any) -> None:
    work(job, Sent(number, _reports.put))
    _reports.put((number, _LAST, ()))


def _worker(workers: int, reports: Any) -> None:
    """Initialise a worker process: set its threads, and make it end when its parent ends, even if that is killed."""
    global _reports
    share_threads(workers)
    _reports = reports
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()  # returns however the parent ends: the operating system closes their pipe
            os._exit(1)

    Thread(target=watch, daemon=True).start()
