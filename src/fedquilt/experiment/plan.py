"""What a run will cost each client, worked out on the meta device: no weights, no data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedquilt.client.client import Client
from fedquilt.config.schema import Config
from fedquilt.core.params import num_bytes
from fedquilt.core.types import ClientId, Turn
from fedquilt.experiment.build import shaped


@dataclass(frozen=True)
class ClientPlan:
    """One client's part of a round: what it trains, what it moves, and the memory it needs at its peak, in bytes.

    ``model_bytes`` is what sending the whole model one way would move. ``activation_bytes`` is what autograd keeps for
    one forward pass of ``batch_size`` rows; temporary buffers of single operations are not in it.
    """

    client: ClientId
    budget: int
    layers: tuple[int, ...]
    trained_parameters: int
    bytes_down: int
    bytes_up: int
    model_bytes: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes

    @property
    def saving(self) -> float:
        """Share of the traffic that is saved against sending the whole model both ways."""
        return 1 - (self.bytes_down + self.bytes_up) / (2 * self.model_bytes)


def plan(config: Config) -> list[ClientPlan]:
    """The first round of a run as if every client took part in it: one plan for each client that is asked.

    The method's own ``ask`` and ``work`` are run on tensors that have shapes and no numbers, so what is counted is what
    would travel.
    """
    experiment = shaped(config)
    turn = Turn(0, experiment.federation.profiles, experiment.rng.child("round", 0))
    state = experiment.method.init(experiment.rng.child("init"))
    exchange = experiment.method.exchanges[0]
    kept: dict[frozenset[str], int] = {}
    plans = []
    for id, order in sorted(exchange.ask(state, turn).items()):
        client = experiment.clients[id]
        reply, memory = exchange.work(client, order, {})
        trained = {**reply.params, **memory.get("params", {})}
        names = frozenset(trained)
        if names not in kept:
            kept[names] = activation_bytes(client, names, config.model.max_length)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in client.bench.model.parameters())
        states = {"adamw": 2, "sgd": 1 if config.training.momentum else 0}[config.training.optimizer]
        plans.append(
            ClientPlan(
                client=id,
                budget=client.profile.budget.layers,
                layers=tuple(order.settings.get("layers", ())),
                trained_parameters=sum(tensor.numel() for tensor in trained.values()),
                bytes_down=num_bytes(order.params),
                bytes_up=num_bytes(reply.params),
                model_bytes=weights,
                weight_bytes=weights,
                gradient_bytes=num_bytes(trained),
                optimizer_bytes=states * num_bytes(trained),
                activation_bytes=kept[names],
            )
        )
    return plans


def activation_bytes(client: Client, names: Collection[str], max_length: int) -> int:
    """Bytes that autograd keeps from one forward pass of the client's batch size until the backward pass needs them.

    Storage is counted once however many operations keep it, and the model's own weights are not counted.
    """
    bench = client.bench
    weights = {parameter.untyped_storage()._cdata for parameter in bench.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with bench.training(names), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), bench.autocast():
        output = bench.model(**_inputs(bench.model, client.training.batch_size, max_length))
        if output.logits.requires_grad:
            output.logits.float().logsumexp(-1)
    return sum(kept.values())


def _inputs(model: nn.Module, rows: int, max_length: int) -> dict[str, Tensor]:
    """A batch of the shape that the model takes, without numbers."""
    config = model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(rows, config.num_channels, height, width, device="meta")}
    return {"input_ids": torch.zeros(rows, max_length, dtype=torch.long, device="meta")}
