"""One client: who it is, its rows, and the workbench it shares with the clients of its architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedquilt.client.fit import Fitted, Training, fit, learning_rate_at
from fedquilt.client.probe import fisher_diagonal, layer_scores
from fedquilt.client.score import evaluation
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile


@dataclass(frozen=True)
class Client:
    """What a method's ``work`` is given.

    ``initial`` holds every tensor of the layout as training begins. What a client uses is, tensor by tensor, its own
    (``memory["params"]``), else the server's (the order's), else the initial one. ``splits`` are held-out rows by name
    (``"test"``, ``"validation"``).
    """

    profile: Profile
    bench: Workbench
    initial: Params
    training: Training
    rounds: int
    train: Batch
    splits: Mapping[str, Batch] = field(default_factory=dict)
    batch_size: int = 256

    @property
    def id(self) -> ClientId:
        return self.profile.id

    def params(self, order: Order, memory: Memory | None = None) -> dict[str, Tensor]:
        """Every tensor of the layout, as this client would use it now."""
        return {**self.initial, **order.params, **(memory or {}).get("params", {})}

    def fit(
        self, order: Order, memory: Memory | None, layers: Collection[int], *, blocks: Collection[int] | None = None
    ) -> Fitted:
        """Train the adapters of ``layers`` and the head on the client's training rows.

        ``blocks``, if given, are the only transformer blocks that are run. The learning rate is the order's round's.
        """
        layout = self.bench.layout
        names = [name for name, layer in layout.depth.items() if layer is None or layer in set(layers)]
        rate = learning_rate_at(self.training, order.round, self.rounds)
        start = self.params(order, memory)
        return fit(self.bench, self.train, start, names, self.training, rate, order.rng, blocks=blocks)

    def layer_scores(
        self, order: Order, memory: Memory | None = None, *, kind: str = "trace", objective: str = "log-prob"
    ) -> list[float]:
        """Fisher score of every block on the client's training rows; see ``probe.layer_scores``."""
        if self.bench.device.type == "meta":  # planning: shapes without numbers
            return [1.0] * self.bench.layout.num_layers
        fisher = fisher_diagonal(self.bench, self.train, self.params(order, memory), objective=objective)
        return layer_scores(fisher, self.bench.layout, kind)

    def evaluate(self, order: Order, memory: Memory | None = None, split: str = "test") -> dict[str, float]:
        """Loss and accuracy on one of the client's held-out splits; empty if the client has no such rows."""
        columns = self.splits.get(split)
        if columns is None or len(columns["labels"]) == 0:
            return {}
        return evaluation(self.bench, columns, self.params(order, memory), batch_size=self.batch_size)
