"""The embedded engine: all clients on this machine, one after another, side by side, or by several processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from fedquilt.client.client import Client
from fedquilt.client.job import Fitting, alone
from fedquilt.core.method import Exchange
from fedquilt.core.profiling import span
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.core.worker import Worker
from fedquilt.engine.batched import Finished, side_by_side
from fedquilt.engine.pool import Answer, Pool
from fedquilt.privacy.ledger import Ledger, answered, ledger_folder


class LocalEngine:
    """The embedded engine: provides ``send`` and keeps each client's private memory.

    Parameters
    ----------
    clients
        The clients, by number.
    memories
        Their memories at the start.
    watch
        Called after each client with the exchange's name, the number of clients done in it, and their total.
    run
        The key under which ledgers of local differential privacy record this run.
    exchanges
        The exchanges of the method, which several processes can work for.

    Attributes
    ----------
    width
        The largest number of clients that are trained side by side, in each process; 1 for one after another.
    processes
        The number of processes that share the work; they are made when the first client works.
    in_turn
        Why clients were trained alone although ``width`` is above 1, by client.
    """

    has_clients = True

    def __init__(
        self,
        clients: Mapping[ClientId, Worker],
        memories: Mapping[ClientId, Memory] | None = None,
        watch: Callable[[str, int, int], None] | None = None,
        *,
        run: str = "",
        exchanges: Iterable[Exchange] = (),
    ) -> None:
        self.clients, self.run = clients, run
        self._root: Path | None = None
        self.ledgers: dict[ClientId, Ledger] = {}
        self.memories: dict[ClientId, Memory] = dict(memories or {})
        self.watch = watch
        self.messages: dict[str, int] = {}  # stays empty: nothing is sent over a network
        self.announced: dict[ClientId, int] = {}
        self.width = self.processes = 1
        self._exchanges = {exchange.name: exchange for exchange in exchanges}
        self._pool: Pool | None = None
        self.in_turn: dict[ClientId, str] = {}

    def keep_ledgers(self, root: Path) -> None:
        """Keep the clients' privacy ledgers in files below ``root``, continuing those that exist; else in memory."""
        self._root, self.ledgers = root, {}

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]:
        """Yield the replies in client order; a client works when its reply, or that of one beside it, is requested."""
        ready: dict[ClientId, Answer] = {}
        pool = self._shared(exchange)
        if pool is not None:
            asked = ((client, orders[client], self._memory(client)) for client in sorted(orders))
            pool.ask(exchange.name, asked, self.width)
        for number, client in enumerate(sorted(orders), start=1):
            if pool is not None:
                with span("client", client=client):
                    ready[client] = pool.answer(client)
                if why := pool.in_turn.pop(client, ""):
                    self.in_turn[client] = why
            elif client not in ready:
                group = self._beside(client, orders.keys() - ready.keys())
                with span("client", client=", ".join(map(str, group))):
                    ready |= self._answers(exchange, orders, group)
            reply, memory = ready.pop(client)
            if memory:
                self.memories[client] = memory
            yield reply
            if self.watch:
                self.watch(exchange.name, number, len(orders))

    def close(self) -> None:
        """End the processes that share the work, if there are any."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _shared(self, exchange: Exchange) -> Pool | None:
        """The processes that share the work of this exchange; None if it is done here."""
        if self.processes == 1 or self._exchanges.get(exchange.name) is not exchange:
            return None
        if self._pool is None:
            self._pool = Pool(self.processes, self._elsewhere)
        return self._pool

    def _elsewhere(
        self, exchange: str, client: ClientId, order: Order, memory: Memory, *, fitting: Fitting = alone
    ) -> Answer:
        """A client's work in another process, which keeps the client's ledger.

        Parameters
        ----------
        exchange, client, order, memory
            The exchange's name, the client, what it is asked, and its memory.
        fitting
            How its local training is carried out.
        """
        worker, own = self.clients[client], self._ledger(client)
        if isinstance(worker, Client):
            worker.bench.stepped = None  # the screen belongs to the first process
            worker = replace(worker, fitting=fitting)
        return answered(own, self.run, self._exchanges[exchange], worker, client, order, lambda: memory)

    def _beside(self, client: ClientId, waiting: Collection[ClientId]) -> list[ClientId]:
        """The client and those of its architecture that come next, up to the width."""
        if self.width == 1 or not isinstance(first := self.clients[client], Client):
            return [client]
        others = (id for id in sorted(waiting) if id > client)
        alike = (id for id in others if isinstance(o := self.clients[id], Client) and o.bench is first.bench)
        return [client, *islice(alike, self.width - 1)]  # no client is made that is not reached

    def _answers(
        self, exchange: Exchange, orders: Mapping[ClientId, Order], group: list[ClientId]
    ) -> dict[ClientId, Answer]:
        """The replies and new memories of these clients."""

        def work(client: ClientId, worker: Worker) -> Answer:
            own, before = self._ledger(client), partial(self._memory, client)
            return answered(own, self.run, exchange, worker, client, orders[client], before)

        def held(client: ClientId, fitting: Fitting) -> Answer:
            worker = self.clients[client]
            assert isinstance(worker, Client)
            return work(client, replace(worker, fitting=fitting))

        if self.width == 1 or not isinstance(self.clients[group[0]], Client):
            return {client: work(client, self.clients[client]) for client in group}
        done: list[Finished[Answer]] = side_by_side([partial(held, client) for client in group])
        self.in_turn |= {client: own.alone for client, own in zip(group, done, strict=True) if own.alone}
        return {client: own.result for client, own in zip(group, done, strict=True)}

    def _ledger(self, client: ClientId) -> Ledger:
        if client not in self.ledgers:
            self.ledgers[client] = Ledger(None if self._root is None else ledger_folder(self._root, client))
        return self.ledgers[client]

    def _memory(self, client: ClientId) -> Memory:
        return self.memories.get(client, {})
