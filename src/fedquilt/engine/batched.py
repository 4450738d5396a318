"""Clients side by side: the work of several clients is held at their local training until all of them are there.

Each client works in a thread of its own, but only one thread runs at a time: a client's, while the engine waits for it,
or the engine's, which trains them. The order is that of the clients, so that results do not depend on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Generic, NamedTuple, TypeVar

from fedquilt.client.job import Fitting, Job
from fedquilt.client.stacked.together import Done, fitted_together
from fedquilt.core.errors import FedquiltError
from fedquilt.core.worker import Fitted

Result = TypeVar("Result")


class Finished(NamedTuple, Generic[Result]):
    """The end of a client's work: its result, and why it trained alone, if it did."""

    result: Result
    alone: str


class Broken(NamedTuple):
    """The end of a client's work by an error that is no failure of a client."""

    error: BaseException


class _Given(BaseException):
    """Ends the thread of a client whose work is given up."""


class Held(Generic[Result]):
    """One client's work, which stops whenever it asks for training.

    Parameters
    ----------
    work
        ``work(fitting)`` does the client's work, and trains by ``fitting``.
    """

    def __init__(self, work: Callable[[Fitting], Result]) -> None:
        self._work = work
        self._asked: SimpleQueue[Job | Finished[Result] | Broken] = SimpleQueue()
        self._answers: SimpleQueue[Done | None] = SimpleQueue()
        self._alone = ""
        self._thread = Thread(target=self._run, daemon=True)
        self.now: Job | Finished[Result] | Broken | None = None

    def begin(self) -> None:
        """Let the work begin, until it asks for training or ends."""
        self._thread.start()
        self.now = self._asked.get()

    def go_on(self, answer: Done) -> None:
        """Let the work go on with the result of the training that it asked for, until it asks again or ends."""
        self._answers.put(answer)
        self.now = self._asked.get()

    def give_up(self) -> None:
        """End the work where it stands, or, if whoever waits for it was interrupted, where it next asks."""
        if not isinstance(self.now, Finished | Broken):
            self._answers.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _fit(self, job: Job) -> Fitted:
        self._asked.put(job)
        answer = self._answers.get()
        if answer is None:
            raise _Given
        self._alone = self._alone or answer.alone
        if isinstance(answer.outcome, FedquiltError):
            raise answer.outcome
        return answer.outcome

    def _run(self) -> None:
        try:
            self._asked.put(Finished(self._work(self._fit), self._alone))
        except _Given:
            pass
        except BaseException as error:  # raised again where the engine waits for the client
            self._asked.put(Broken(error))


def side_by_side(works: Sequence[Callable[[Fitting], Result]]) -> list[Finished[Result]]:
    """The results of several clients' works; training that they ask for at the same time is done at once.

    An error that is no ``FedquiltError`` is raised, and ends the works of all.
    """
    held: list[Held[Result]] = []
    try:
        for work in works:
            held.append(Held(work))
            held[-1].begin()
            _refuse(held[-1])
        while asking := [own for own in held if isinstance(own.now, Job)]:
            for own, answer in zip(asking, fitted_together([own.now for own in asking]), strict=True):  # type: ignore[misc]
                own.go_on(answer)
                _refuse(own)
    finally:
        for own in held:
            own.give_up()
    return [own.now for own in held if isinstance(own.now, Finished)]


def _refuse(held: Held[Result]) -> None:
    if isinstance(held.now, Broken):
        raise held.now.error
