"""One client: who it is, its rows, and the workbench it shares with the clients of its architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedquilt.aggregate.base_log import incoming, shifts
from fedquilt.client.fit import Fitted, Penalty, Training, fit, learning_rate_at
from fedquilt.client.probe import fisher_diagonal, layer_scores
from fedquilt.client.score import evaluation
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile


@dataclass(frozen=True)
class Client:
    """What a method's ``work`` is given.

    ``initial`` holds every tensor of the layout as training begins. What a client uses is, tensor by tensor, its own
    (``memory["params"]``), else the server's (the order's), else the initial one; what was merged into the base is in
    ``memory["base"]``, and what the order adds to that. ``splits`` are held-out rows by name (``"test"``,
    ``"validation"``). ``frozen`` are tensors that it does not train, whatever layer they are in; ``penalties`` are
    added to its loss.
    """

    profile: Profile
    bench: Workbench
    initial: Params
    training: Training
    rounds: int
    train: Batch
    splits: Mapping[str, Batch] = field(default_factory=dict)
    batch_size: int = 256
    frozen: frozenset[str] = frozenset()
    penalties: tuple[Penalty, ...] = ()

    @property
    def id(self) -> ClientId:
        return self.profile.id

    def params(self, order: Order, memory: Memory | None = None) -> dict[str, Tensor]:
        """Every tensor of the layout, as this client would use it now, and what was merged into the base."""
        memory = memory or {}
        sent, base = incoming(order.params, memory.get("base"))
        return {**self.initial, **shifts(base), **sent, **memory.get("params", {})}

    def freezing(self, names: Collection[str]) -> Client:
        """This client, which leaves the tensors ``names`` as they are when it trains."""
        return replace(self, frozen=self.frozen | frozenset(names))

    def penalised(self, penalty: Penalty) -> Client:
        """This client, whose loss in training has the penalty added; see ``fit.fit``."""
        return replace(self, penalties=(*self.penalties, penalty))

    def fit(
        self, order: Order, memory: Memory | None, layers: Collection[int], *, blocks: Collection[int] | None = None
    ) -> Fitted:
        """Train the adapters of ``layers`` and the head on the client's training rows.

        Tensors in ``frozen`` are not trained, and not among what comes back. ``blocks``, if given, are the only
        transformer blocks that are run. The learning rate is the order's round's.
        """
        layout = self.bench.layout
        chosen = set(layers)
        trained = [name for name, layer in layout.depth.items() if layer is None or layer in chosen]
        names = [name for name in trained if name not in self.frozen]
        rate = learning_rate_at(self.training, order.round, self.rounds)
        start = self.params(order, memory)
        return fit(
            self.bench,
            self.train,
            start,
            names,
            self.training,
            rate,
            order.rng,
            blocks=blocks,
            penalties=self.penalties,
        )

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
