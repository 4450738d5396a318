"""What carries a run: the engine behind the loop, how a run gets one, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from fedquilt.config.schema import Config
from fedquilt.core.method import Exchange
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.build import Experiment


class Progress(Protocol):
    """What a run tells while it goes on; the command shows it."""

    def started(self, name: str, first: int, rounds: int) -> None:
        """The run ``name`` begins with round ``first`` of ``rounds``."""

    def client(self, exchange: str, number: int, of: int) -> None:
        """Client ``number`` of ``of`` has done its part of the exchange."""

    def step(self, number: int, of: int) -> None:
        """A client has made its optimiser step ``number`` of ``of``."""

    def round(self, line: Mapping[str, Any]) -> None:
        """A round is finished and recorded; ``line`` is its line of the record, and under ``names`` what the data call
        clients that have a name, by id."""


class Silent:
    """A Progress that tells nothing."""

    def started(self, name: str, first: int, rounds: int) -> None: ...

    def client(self, exchange: str, number: int, of: int) -> None: ...

    def step(self, number: int, of: int) -> None: ...

    def round(self, line: Mapping[str, Any]) -> None: ...


class Engine(Protocol):
    """What carries a run: ``send`` of ``core.loop``, and the clients' memories as far as they are in this process.

    ``messages`` counts what was sent to clients over a network, by type of message; ``announced`` are the training rows
    that each client says it has, empty where the server knows them.
    """

    memories: dict[ClientId, Memory]
    messages: dict[str, int]
    announced: dict[ClientId, int]
    has_clients: bool

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]: ...


class Connect(NamedTuple):
    """How a run gets its engine: ``make(experiment, key, memories, progress)``, where ``key`` is the run's own.

    ``here`` are the clients whose own rows are in this process, all for None. ``adapted(config)`` is the config that
    both sides build the experiment from: whoever cannot see the clients' rows has them score themselves.
    """

    name: str
    make: Callable[[Experiment, str, dict[ClientId, Memory], Progress], Engine]
    here: tuple[ClientId, ...] | None = None
    adapted: Callable[[Config], Config] = lambda config: config


def _embedded(experiment: Experiment, key: str, memories: dict[ClientId, Memory], progress: Progress) -> Engine:
    for client in experiment.clients.values():
        client.bench.stepped = progress.step
    return LocalEngine(experiment.clients, memories, progress.client, run=key)


EMBEDDED = Connect("embedded", _embedded)
