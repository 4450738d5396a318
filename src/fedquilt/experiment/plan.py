"""Planned cost of a run for each client, computed on the meta device without weights or data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedquilt.aggregate.axes_exchange import smallest
from fedquilt.client.client import Client
from fedquilt.config.schema import Config
from fedquilt.core.federation import Federation
from fedquilt.core.params import num_bytes
from fedquilt.core.types import ClientId, Memory, Order, Params
from fedquilt.core.wire import num_wire_bytes
from fedquilt.core.worker import Extra, Fitted, Penalty, Phase
from fedquilt.experiment.build import Experiment, shaped
from fedquilt.experiment.first_round import begun_round, training_of
from fedquilt.experiment.groups import BuiltGroup
from fedquilt.experiment.needs import ClientPlan, Measured, Plan, ServerPlan, base_bytes, needs_of
from fedquilt.experiment.vertical_plan import vertical_plan


def plan(config: Config) -> list[ClientPlan]:
    """The clients' part of ``whole_plan``."""
    return whole_plan(config).clients


def whole_plan(config: Config) -> Plan:
    """The plan of the first round of a run in which every client takes part.

    The method's own ``ask``, ``work`` and ``merge`` run on meta tensors up to the clients' training, so the counts are
    those of the tensors that would be sent. The head has one output for each class of the data, or the model's own
    outputs if the data is not here. In a vertical federation all exchanges of a round run, and the data must be here.
    """
    experiment = shaped(config)
    if config.parties:
        return vertical_plan(experiment)
    measured: Measured = {}
    begun = begun_round(experiment.method, experiment.clients, experiment.federation.profiles, experiment.rng)
    clients = [
        client_plan(experiment, id, order, measured, begun.moved.get(id, (0, 0)))
        for id, order in sorted(begun.orders.items())
    ]
    return Plan(clients, None if experiment.owner is None else server_plan(experiment, experiment.owner))


def server_plan(experiment: Experiment, owner: BuiltGroup) -> ServerPlan:
    """The plan of the server that owns a model, on the meta device."""
    server, rows = _Watched(owner.server), max(experiment.method.beside.on_server(experiment.config.cohort))
    server.fit(Order({}), {}, range(owner.layout.num_layers))
    needs = needs_of(owner, server.client, server.trained, server.blocks, rows, {})
    return ServerPlan(architecture=owner.architecture, **needs)


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
        model_bytes=base_bytes(client.client, not group.kind.trains_base),
        **needs_of(group, client.client, client.trained, client.blocks, experiment.method.beside.client, measured),
        **_once(experiment.federation, group.architecture, config.adapter.rank),
    )


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

    def penalised(self, penalty: Penalty, *, runs_model: bool = False) -> _Watched:
        return _Watched(self.client.penalised(penalty, runs_model=runs_model), self.noted)

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
