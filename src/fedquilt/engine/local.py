"""The embedded engine: every client in this process, one after another, nothing serialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedquilt.core.loop import perform
from fedquilt.core.method import Exchange
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply


class LocalEngine:
    """Gives ``send``; keeps every client's private memory, which never enters a reply.

    ``watch(exchange, number of the client in this exchange, clients in all)`` is called after each client.
    """

    has_clients = True

    def __init__(
        self,
        clients: Mapping[ClientId, Any],
        memories: Mapping[ClientId, Memory] | None = None,
        watch: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.clients = clients
        self.memories: dict[ClientId, Memory] = dict(memories or {})
        self.watch = watch
        self.messages: dict[str, int] = {}  # nothing is sent
        self.announced: dict[ClientId, int] = {}

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]:
        """The replies, in client order, each made when it is asked for."""
        for number, client in enumerate(sorted(orders), start=1):
            memory = self.memories.get(client, {})
            reply, memory = perform(exchange, self.clients[client], client, orders[client], memory)
            if memory:
                self.memories[client] = memory
            yield reply
            if self.watch:
                self.watch(exchange.name, number, len(orders))
