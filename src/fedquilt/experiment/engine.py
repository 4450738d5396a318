"""Interfaces of a run: engines, and how a run connects to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Exchange
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.build import Experiment
from fedquilt.experiment.progress import Progress


class Engine(Protocol):
    """An engine: ``send`` for ``core.loop``, and the state of the clients in this process.

    Attributes
    ----------
    memories : the clients' memories, if they are in this process.
    messages : the number of messages sent to clients over a network, by type.
    announced : the number of training rows that each client announced; empty if the server knows them.
    has_clients : whether the clients are in this process.
    """

    memories: dict[ClientId, Memory]
    messages: dict[str, int]
    announced: dict[ClientId, int]
    has_clients: bool

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]: ...


class Connect(NamedTuple):
    """How a run connects to its engine: ``make(experiment, key, memories, progress)`` with the key of the run.

    ``here`` are the clients whose own rows are in this process, None for all. ``adapted(config)`` is the config that
    server and clients build the experiment from; a server without the clients' rows lets them score themselves.
    """

    name: str
    make: Callable[[Experiment, str, dict[ClientId, Memory], Progress], Engine]
    here: tuple[ClientId, ...] | None = None
    adapted: Callable[[Config], Config] = lambda config: config


def _embedded(experiment: Experiment, key: str, memories: dict[ClientId, Memory], progress: Progress) -> Engine:
    for group in experiment.groups:
        group.bench.stepped = progress.step
        group.bench.prefix_bytes = experiment.config.engine.prefix_bytes
    method, device = experiment.method, experiment.groups[0].bench.device.type
    if (number := experiment.config.engine.processes) > 1 and device != "cpu":
        raise ConfigError(f"engine.processes = {number}: needs device = 'cpu', and the models are on {device}")
    engine = LocalEngine(
        experiment.clients, memories, progress.client, run=key, exchanges=(*method.exchanges, *method.closing)
    )
    engine.processes = experiment.config.engine.processes
    return engine


EMBEDDED = Connect("embedded", _embedded)


def in_turn(engine: Engine) -> dict[str, Any]:
    """The part of a round's line that says why clients were trained alone in a run that trains them side by side."""
    if not isinstance(engine, LocalEngine) or not engine.in_turn:
        return {}
    told = {str(client): why for client, why in sorted(engine.in_turn.items())}
    engine.in_turn.clear()
    return {"in_turn": told}
