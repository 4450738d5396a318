"""Planned cost of a run for each client, computed on the meta device without weights or data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.axes_exchange import smallest
from fedquilt.client.client import Client
from fedquilt.config.schema import Config
from fedquilt.core.federation import Federation
from fedquilt.core.params import num_bytes
from fedquilt.core.types import ClientId, Memory, Order, Params
from fedquilt.core.wire import num_wire_bytes
from fedquilt.core.worker import Extra, Fitted, Penalty, Phase
from fedquilt.experiment.activations import activation_bytes
from fedquilt.experiment.build import Experiment, shaped
from fedquilt.experiment.first_round import begun_round, training_of
from fedquilt.experiment.groups import BuiltGroup


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What training needs, in bytes of memory except for the first.

    Attributes
    ----------
    trained_parameters : the number of trained parameters.
    weight_bytes : bytes of the weights.
    gradient_bytes : bytes of the gradients.
    optimizer_bytes : bytes of the optimiser's state.
    activation_bytes : the most bytes that a forward and backward pass over a batch holds at a time, with fused
        attention, besides weights and gradients (``activations.activation_bytes``).
    """

    trained_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


@dataclass(frozen=True, kw_only=True)
class ServerPlan(Needs):
    """What training the model that the server owns needs; all its adapters are trained.

    Attributes
    ----------
    architecture : the name of its architecture.
    """

    architecture: str


@dataclass(frozen=True, kw_only=True)
class ClientPlan(Needs):
    """One client's part of a round: trained parameters, communication cost and peak memory, in bytes.

    Attributes
    ----------
    client : the client.
    group : the label of its group; empty without [[groups]].
    budget : the number of blocks that it can train.
    layers : the blocks that it trains.
    num_classes : the size of the classification head; 0 for language models.
    bytes_down : bytes of the orders of a round.
    bytes_up : bytes of the replies of a round.
    model_bytes : bytes of the whole model without adapters, for comparison.
    once_down, once_up : bytes of common coordinates of public inputs, which are exchanged once and not in every round;
        up includes the bases, which one client of an architecture sends for all. 0 for other kinds of adapters.
    """

    client: ClientId
    group: str
    budget: int
    layers: tuple[int, ...]
    num_classes: int
    bytes_down: int
    bytes_up: int
    model_bytes: int
    once_down: int = 0
    once_up: int = 0

    @property
    def saving(self) -> float:
        """Fraction of the communication cost that is saved, compared with sending the whole model both ways."""
        return 1 - (self.bytes_down + self.bytes_up) / (2 * self.model_bytes)


class Plan(NamedTuple):
    """The plan of a first round: of each client with an order, and of the server if it owns a model."""

    clients: list[ClientPlan]
    server: ServerPlan | None


def plan(config: Config) -> list[ClientPlan]:
    """The clients' part of ``whole_plan``."""
    return whole_plan(config).clients


def whole_plan(config: Config) -> Plan:
    """The plan of the first round of a run in which every client takes part.

    The method's own ``ask``, ``work`` and ``merge`` run on meta tensors up to the clients' training, so the counts are
    those of the tensors that would be sent. The head has one output for each class of the data, or the model's own
    outputs if the data is not here.
    """
    experiment = shaped(config)
    measured: Measured = {}
    begun = begun_round(experiment.method, experiment.clients, experiment.federation.profiles, experiment.rng)
    clients = [
        client_plan(experiment, id, order, measured, begun.moved.get(id, (0, 0)))
        for id, order in sorted(begun.orders.items())
    ]
    return Plan(clients, None if experiment.owner is None else server_plan(experiment, experiment.owner))


Measured = dict[Any, tuple[int, int]]
"""Cache of the bytes of weights and activations, by the tensors and blocks that are trained and run."""


def server_plan(experiment: Experiment, owner: BuiltGroup) -> ServerPlan:
    """The plan of the server that owns a model, on the meta device."""
    server, rows = _Watched(owner.server), max(experiment.method.beside.on_server(experiment.config.cohort))
    server.fit(Order({}), {}, range(owner.layout.num_layers))
    return ServerPlan(architecture=owner.architecture, **_needs(owner, server, rows, {}))


def client_plan(
    experiment: Experiment, id: ClientId, order: Order, measured: Measured, before: tuple[int, int] = (0, 0)
) -> ClientPlan:
    """The plan of a client for this order, on the meta device.

    Parameters
    ----------
    experiment
        The experiment of shapes.
    id, order
        The client's number, and its order to train.
    measured
        Keeps results.
    before
        Bytes down and up of the exchanges of a round before this one.
    """
    group, exchange = experiment.group_of(id), training_of(experiment.method)
    config = group.config
    model: Any = group.loaded.model
    client = _Watched(experiment.clients[id])
    reply, _ = exchange.work(client, order, {})
    return ClientPlan(
        client=id,
        group=group.label,
        budget=client.profile.budget.layers,
        layers=tuple(order.settings.get("layers", ())),
        num_classes=getattr(model.config, "num_labels", 0) if group.loaded.head else 0,
        bytes_down=before[0] + num_wire_bytes(order.params, exchange.wire),
        bytes_up=before[1] + num_wire_bytes(reply.params, exchange.wire),
        model_bytes=_base_bytes(client.client, not group.kind.trains_base),
        **_needs(group, client, experiment.method.beside.client, measured),
        **_once(experiment.federation, group.architecture, config.adapter.rank),
    )


def _needs(group: BuiltGroup, client: _Watched, beside: int, measured: Measured) -> dict[str, int]:
    """The fields of ``Needs`` of a client that has trained; ``beside`` are the rows of a pass besides its own."""
    config, trained = group.config, client.trained
    own = replace(config.training, batch_size=max(config.training.batch_size, beside))  # one pass follows the other
    states = {"adamw": 2, "sgd": 1 if own.momentum else 0}[own.optimizer]
    shapes = frozenset((name, tensor.shape) for name, tensor in trained.items())
    key = (group.architecture, own, config.model.max_length, client.bench.precision, shapes, client.blocks)
    if key not in measured:
        with client.bench.shallow(client.blocks):
            weights = sum(tensor.numel() * tensor.element_size() for tensor in client.bench.model.parameters())
        passing = replace(client.client, training=own)
        measured[key] = weights, activation_bytes(passing, trained, config.model.max_length, client.blocks)
    return {
        "trained_parameters": sum(tensor.numel() for tensor in trained.values()),
        "weight_bytes": measured[key][0],
        "gradient_bytes": num_bytes(trained),
        "optimizer_bytes": states * num_bytes(trained),
        "activation_bytes": measured[key][1],
    }


def _once(federation: Federation, architecture: str, rank: int) -> dict[str, int]:
    """The bytes of the exchange of common coordinates for one client; it travels in single precision."""
    public = federation.public.get(architecture)
    if public is None:
        return {}
    if public.anchored:  # what the smallest architecture says goes to all as it is, and the others say nothing
        anchor = smallest(federation, federation.layouts)
        said = num_bytes(federation.public[anchor].bases)
        return {"once_down": said, "once_up": num_bytes(public.seen) + (said if architecture == anchor else 0)}
    points = {name: torch.empty(len(basis), rank, device="meta") for name, basis in public.bases.items()}
    return {"once_down": num_bytes(points), "once_up": num_bytes(public.bases) + num_bytes(public.seen)}


@dataclass
class _Watched:
    """A client that notes the tensors that it trained and the blocks that it ran (None for all).

    Clients derived from it share its notes.
    """

    client: Client
    noted: dict[str, Any] = field(default_factory=lambda: {"blocks": None, "trained": {}})

    @property
    def blocks(self) -> tuple[int, ...] | None:
        blocks: tuple[int, ...] | None = self.noted["blocks"]
        return blocks

    @property
    def trained(self) -> Params:
        params: Params = self.noted["trained"]
        return params

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def freezing(self, names: Collection[str]) -> _Watched:
        return _Watched(self.client.freezing(names), self.noted)

    def penalised(self, penalty: Penalty) -> _Watched:
        return _Watched(self.client.penalised(penalty), self.noted)

    def posing(self, prompts: Sequence[str], completions: Sequence[str]) -> _Watched:
        return _Watched(self.client.posing(prompts, completions), self.noted)

    def fit(
        self, order: Order, memory: Memory | None, layers: Collection[int], *, blocks: Collection[int] | None = None
    ) -> Fitted:
        return self._noting(self.client.fit(order, memory, layers, blocks=blocks), blocks)

    def alternate(
        self,
        order: Order,
        memory: Memory | None,
        phases: Sequence[Phase],
        *,
        blocks: Collection[int] | None = None,
        extra: Extra | None = None,
    ) -> Fitted:
        return self._noting(self.client.alternate(order, memory, phases, blocks=blocks, extra=extra), blocks)

    def _noting(self, fitted: Fitted, blocks: Collection[int] | None) -> Fitted:
        self.noted["blocks"] = None if blocks is None else tuple(sorted(blocks))
        self.noted["trained"] = fitted.params
        return fitted


def _base_bytes(client: Client, adapted: bool) -> int:
    """Bytes of the model without adapters."""
    layout = client.bench.layout
    adapters = {*layout.names(range(layout.num_layers))} if adapted else set()
    # a branch that no block uses is not in the layout
    bare = (own for name, own in client.bench.model.named_parameters() if name not in adapters and not is_shared(name))
    return sum(tensor.numel() * tensor.element_size() for tensor in bare)
