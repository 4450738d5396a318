"""The embedded engine: all clients in this process, one after another, without serialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from fedquilt.core.method import Exchange
from fedquilt.core.profiling import span
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.core.worker import Worker
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
    """

    has_clients = True

    def __init__(
        self,
        clients: Mapping[ClientId, Worker],
        memories: Mapping[ClientId, Memory] | None = None,
        watch: Callable[[str, int, int], None] | None = None,
        *,
        run: str = "",
    ) -> None:
        self.clients, self.run = clients, run
        self.ledgers = {client: Ledger() for client in clients}
        self.memories: dict[ClientId, Memory] = dict(memories or {})
        self.watch = watch
        self.messages: dict[str, int] = {}  # stays empty: nothing is sent over a network
        self.announced: dict[ClientId, int] = {}

    def keep_ledgers(self, root: Path) -> None:
        """Keep the clients' privacy ledgers in files below ``root``, continuing those that exist; else in memory."""
        self.ledgers = {client: Ledger(ledger_folder(root, client)) for client in self.clients}

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]:
        """Yield the replies in client order; each client works when its reply is requested."""
        for number, client in enumerate(sorted(orders), start=1):
            own, before = self.ledgers[client], partial(self._memory, client)
            with span("client", client=client):
                reply, memory = answered(own, self.run, exchange, self.clients[client], client, orders[client], before)
            if memory:
                self.memories[client] = memory
            yield reply
            if self.watch:
                self.watch(exchange.name, number, len(orders))

    def _memory(self, client: ClientId) -> Memory:
        return self.memories.get(client, {})
