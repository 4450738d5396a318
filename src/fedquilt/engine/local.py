"""The embedded engine: every client in this process, one after another, nothing serialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from fedquilt.core.method import Exchange
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.core.worker import Worker
from fedquilt.privacy.ledger import Ledger, answered, ledger_folder


class LocalEngine:
    """Gives ``send``; keeps every client's private memory, which never enters a reply.

    ``watch(exchange, number of the client in this exchange, clients in all)`` is called after each client. What clients
    give away under local privacy is noted as of the run with key ``run``: in this process alone, or where
    ``keep_ledgers`` says.
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
        self.messages: dict[str, int] = {}  # nothing is sent
        self.announced: dict[ClientId, int] = {}

    def keep_ledgers(self, root: Path) -> None:
        """Keep what clients give away under local privacy below ``root``, and go on with what is there."""
        self.ledgers = {client: Ledger(ledger_folder(root, client)) for client in self.clients}

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]:
        """The replies, in client order, each made when it is asked for."""
        for number, client in enumerate(sorted(orders), start=1):
            own, before = self.ledgers[client], partial(self._memory, client)
            reply, memory = answered(own, self.run, exchange, self.clients[client], client, orders[client], before)
            if memory:
                self.memories[client] = memory
            yield reply
            if self.watch:
                self.watch(exchange.name, number, len(orders))

    def _memory(self, client: ClientId) -> Memory:
        return self.memories.get(client, {})
