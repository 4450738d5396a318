"""A pool of processes on one machine that share the work of a cohort's clients.

Processes are forked when the first client works, so that each starts with everything that was built, and no memory is
copied that nobody writes to. A client always works in the same process, alone or side by side with others of it.
Tensors go to and fro as the bytes of safetensors files, beside plain values.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from fedquilt.client.job import Fitting
from fedquilt.core.errors import FedquiltError, RoundError, RunError
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.engine.batched import side_by_side
from fedquilt.record.tree_bytes import tree_from_bytes, tree_to_bytes

Answer = tuple[Reply | Failure, Memory | None]
"""A client's reply and its new memory."""

Work = Callable[..., Answer]
"""The work of a client in the exchange of this name, under an order and its memory; side by side also by a fitting."""


class _Asked(NamedTuple):
    client: ClientId
    order: Order
    params: bytes
    memory: bytes


class _Task(NamedTuple):
    exchange: str
    asked: tuple[_Asked, ...]


class _Told(NamedTuple):
    reply: Reply | Failure
    params: bytes
    memory: bytes | None
    alone: str = ""


_Result = list[_Told]
"""What came of a task's clients, in their order."""


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

    Attributes
    ----------
    in_turn
        Why clients that were asked side by side were trained alone, by client.

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
        self._at_work: dict[int, tuple[ClientId, ...]] = {}  # the clients that work in each busy process
        self._done: dict[ClientId, Answer] = {}
        self.in_turn: dict[ClientId, str] = {}

    def ask(self, exchange: str, tasks: Iterable[tuple[ClientId, Order, Memory]], width: int = 1) -> None:
        """Let the clients work, up to ``width`` of a process side by side, and otherwise one after another."""
        shares: list[list[_Asked]] = [[] for _ in self._ends]
        for client, order, memory in tasks:
            params = tree_to_bytes(dict(order.params))
            asked = _Asked(client, replace(order, params={}), params, tree_to_bytes(memory))
            shares[client % len(self._ends)].append(asked)
        for place, share in enumerate(shares):
            groups = (share[first : first + width] for first in range(0, len(share), width))
            self._waiting[place].extend(_Task(exchange, tuple(group)) for group in groups)
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
        self._at_work[place] = tuple(asked.client for asked in task.asked)
        try:
            self._ends[place].send(task)
        except OSError as error:
            raise self._dead(place) from error

    def _hear(self, place: int) -> None:
        try:
            result: _Result | _Raised = self._ends[place].recv()
        except (EOFError, OSError) as error:
            raise self._dead(place) from error
        clients = self._at_work.pop(place)
        if isinstance(result, _Raised):
            raise result.error or RuntimeError(f"{_named(clients)}, in another process:\n{result.text}")
        self._go_on(place)
        for client, (reply, params, memory, alone) in zip(clients, result, strict=True):
            if isinstance(reply, Reply):
                reply = replace(reply, params=tree_from_bytes(params))
            self._done[client] = reply, None if memory is None else tree_from_bytes(memory)
            if alone:
                self.in_turn[client] = alone

    def _dead(self, place: int) -> RoundError:
        process = self._processes[place]
        process.join(1.0)
        code = process.exitcode
        how = f"with exit code {code}" if code is None or code >= 0 else f"by signal {signal.Signals(-code).name}"
        return RoundError(
            f"process {place + 1} of {len(self._ends)} ended {how} while {_named(self._at_work[place])} worked in "
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
    def one(asked: _Asked, **how: Fitting) -> Answer:
        order = replace(asked.order, params=tree_from_bytes(asked.params))
        return work(task.exchange, asked.client, order, tree_from_bytes(asked.memory), **how)

    try:
        if len(task.asked) == 1:
            return [_told(one(task.asked[0]))]
        works = [lambda fitting, asked=asked: one(asked, fitting=fitting) for asked in task.asked]
        return [_told(done.result, done.alone) for done in side_by_side(works)]
    except FedquiltError as error:
        return _Raised(error, "")
    except Exception:  # not lost: the first process raises it
        return _Raised(None, traceback.format_exc())


def _told(answer: Answer, alone: str = "") -> _Told:
    reply, memory = answer
    kept = None if memory is None else tree_to_bytes(memory)
    if isinstance(reply, Failure):
        return _Told(reply, b"", kept, alone)
    return _Told(replace(reply, params={}), tree_to_bytes(dict(reply.params)), kept, alone)


def _named(clients: tuple[ClientId, ...]) -> str:
    return f"client{'s' if len(clients) > 1 else ''} {', '.join(map(str, clients))}"
