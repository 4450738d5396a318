"""What a client or a server needs to train and to communicate, measured on the meta device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fedquilt.adapters.sites import is_shared
from fedquilt.client.client import Client
from fedquilt.core.params import num_bytes
from fedquilt.core.types import ClientId, Params
from fedquilt.experiment.activations import activation_bytes
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
    evaluation_down, evaluation_up : bytes of an evaluation, which comes on top of the rounds that are evaluated: of the
        joint prediction of a vertical federation; 0 for others.
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
    evaluation_down: int = 0
    evaluation_up: int = 0

    @property
    def saving(self) -> float:
        """Fraction of the communication cost that is saved, compared with sending the whole model both ways."""
        return 1 - (self.bytes_down + self.bytes_up) / (2 * self.model_bytes)


class Plan(NamedTuple):
    """The plan of a first round: of each client with an order, and of the server if it owns a model."""

    clients: list[ClientPlan]
    server: ServerPlan | None


Measured = dict[Any, tuple[int, int]]
"""Cache of the bytes of weights and activations, by the tensors and blocks that are trained and run."""


def needs_of(
    group: BuiltGroup,
    client: Client,
    trained: Params,
    blocks: tuple[int, ...] | None,
    beside: int,
    measured: Measured,
) -> dict[str, int]:
    """The fields of ``Needs`` of a client.

    Parameters
    ----------
    group, client
        The client, and its group.
    trained, blocks
        The tensors that it trains, and the blocks that it runs, None for all.
    beside
        Rows of a pass besides its own.
    measured
        Keeps results.
    """
    config = group.config
    own = replace(config.training, batch_size=max(config.training.batch_size, beside))  # one pass follows the other
    states = {"adamw": 2, "sgd": 1 if own.momentum else 0}[own.optimizer]
    shapes = frozenset((name, tensor.shape) for name, tensor in trained.items())
    key = (group.architecture, own, config.model.max_length, client.bench.precision, shapes, blocks)
    if key not in measured:
        with client.bench.shallow(blocks):
            weights = sum(tensor.numel() * tensor.element_size() for tensor in client.bench.model.parameters())
        passing = replace(client, training=own)
        measured[key] = weights, activation_bytes(passing, trained, config.model.max_length, blocks)
    return {
        "trained_parameters": sum(tensor.numel() for tensor in trained.values()),
        "weight_bytes": measured[key][0],
        "gradient_bytes": num_bytes(trained),
        "optimizer_bytes": states * num_bytes(trained),
        "activation_bytes": measured[key][1],
    }


def base_bytes(client: Client, adapted: bool) -> int:
    """Bytes of the model without adapters."""
    layout = client.bench.layout
    adapters = {*layout.names(range(layout.num_layers))} if adapted else set()
    # a branch that no block uses is not in the layout
    bare = (own for name, own in client.bench.model.named_parameters() if name not in adapters and not is_shared(name))
    return sum(tensor.numel() * tensor.element_size() for tensor in bare)
