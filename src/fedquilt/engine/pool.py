"""A pool of processes on one machine that share the work of a cohort's clients.

Processes are forked when the first client works, so that each starts with everything that was built, and no memory is
copied that nobody writes to. A client always works in the same process. Tensors go to and fro as the bytes of
safetensors files, beside plain values.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from fedquilt.core.errors import FedquiltError, RoundError, RunError
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

Answer = tuple[Reply | Failure, Memory | None]
"""A client's reply and its new memory."""

Work = Callable[[str, ClientId, Order, Memory], Answer]
"""The work of a client in the exchange of this name, under an order and its memory."""


class _Task(NamedTuple):
    exchange: str
    client: ClientId
    order: Order
    params: bytes
    memory: bytes


class _Result(NamedTuple):
    reply: Reply | Failure
    params: bytes
    memory: bytes | None


class _Raised(NamedTuple):
    error: FedquiltError | None
    text: str


class Pool:
    """Processes that work for clients.

    Parameters
    ----------
    number
        The number of processes, at least 1.
    work
        What a process does for a client.

    Raises
    ------
    RunError
        if the system refuses so many processes; those that were started are ended.
    """

    def __init__(self, number: int, work: Work) -> None:
        context = multiprocessing.get_context("fork")
        self._ends: list[Connection] = []
        self._processes = []
        try:
            for _ in range(number):
                ours, theirs = context.Pipe()
                # a forked process holds the ends of those before it, and would keep them open when this one is gone
                process = context.Process(target=_serve, args=(theirs, [*self._ends, ours], work), daemon=True)
                process.start()
                theirs.close()
                self._ends.append(ours)
                self._processes.append(process)
        except OSError as error:
            self.close()
            raise RunError(
                f"engine.processes = {number}: process {len(self._ends) + 1} cannot be started ({error.strerror}); "
                "lower it"
            ) from error
        self._waiting: list[deque[_Task]] = [deque() for _ in range(number)]
        self._at_work: dict[int, ClientId] = {}  # the client that works in each busy process
        self._done: dict[ClientId, Answer] = {}

    def ask(self, exchange: str, tasks: Iterable[tuple[ClientId, Order, Memory]]) -> None:
        """Let the clients work, those of a process one after another."""
        for client, order, memory in tasks:
            params = tree_to_bytes(dict(order.params))
            task = _Task(exchange, client, replace(order, params={}), params, tree_to_bytes(memory))
            self._waiting[client % len(self._ends)].append(task)
        for place in range(len(self._ends)):
            self._go_on(place)

    def answer(self, client: ClientId) -> Answer:
        """The reply and new memory of a client that was asked, once it has worked.

        Raises
        ------
        RoundError
            if a process died (names the client that worked in it).
        FedquiltError
            if a client's work raised one.
        RuntimeError
            if it raised another exception.
        """
        while client not in self._done:
            for ready in wait([self._ends[place] for place in self._at_work]):
                self._hear(next(place for place, end in enumerate(self._ends) if end is ready))
        return self._done.pop(client)

    def close(self) -> None:
        """End the processes."""
        for end, process in zip(self._ends, self._processes, strict=True):
            end.close()
            process.terminate()
            process.join()

    def _go_on(self, place: int) -> None:
        """Give a process its next client; a busy one gets none, or both ends could wait for each other to read."""
        if place in self._at_work or not self._waiting[place]:
            return
        task = self._waiting[place].popleft()
        self._at_work[place] = task.client
        try:
            self._ends[place].send(task)
        except OSError as error:
            raise self._dead(place) from error

    def _hear(self, place: int) -> None:
        try:
            result: _Result | _Raised = self._ends[place].recv()
        except (EOFError, OSError) as error:
            raise self._dead(place) from error
        client = self._at_work.pop(place)
        if isinstance(result, _Raised):
            raise result.error or RuntimeError(f"client {client}, in another process:\n{result.text}")
        self._go_on(place)
        reply, params, memory = result
        if isinstance(reply, Reply):
            reply = replace(reply, params=tree_from_bytes(params))
        self._done[client] = reply, None if memory is None else tree_from_bytes(memory)

    def _dead(self, place: int) -> RoundError:
        process = self._processes[place]
        process.join(1.0)
        code = process.exitcode
        how = f"with exit code {code}" if code is None or code >= 0 else f"by signal {signal.Signals(-code).name}"
        return RoundError(
            f"process {place + 1} of {len(self._ends)} ended {how} while client {self._at_work[place]} worked in "
            "it; if memory ran out, lower engine.processes"
        )


def _serve(end: Connection, others: Iterable[Connection], work: Work) -> None:
    """What a process does: work for one client after another until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    for other in others:
        other.close()
    try:
        while True:
            end.send(_worked(end.recv(), work))
    except (EOFError, OSError):  # of the pipe: all that the work raises is sent through it
        return


def _worked(task: _Task, work: Work) -> _Result | _Raised:
    try:
        order = replace(task.order, params=tree_from_bytes(task.params))
        memory: Any = tree_from_bytes(task.memory)
        reply, new = work(task.exchange, task.client, order, memory)
        kept = None if new is None else tree_to_bytes(new)
        if isinstance(reply, Failure):
            return _Result(reply, b"", kept)
        return _Result(replace(reply, params={}), tree_to_bytes(dict(reply.params)), kept)
    except FedquiltError as error:
        return _Raised(error, "")
    except Exception:  # not lost: the first process raises it
        return _Raised(None, traceback.format_exc())
