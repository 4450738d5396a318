"""One client: who it is, its rows, and the workbench it shares with the clients of its architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedquilt.aggregate.lowrank.base_log import incoming, shifts
from fedquilt.bank.client_cores import Middle, middle_of, with_cores_of
from fedquilt.client.fit import Fitted, Penalty, Phase, Training, alternate, learning_rate_at
from fedquilt.client.generation import Answering
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
    added to its loss. ``answering`` is how a language model is judged by its answers, None by its tokens.
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
    answering: Answering | None = None

    @property
    def id(self) -> ClientId:
        return self.profile.id

    def params(self, order: Order, memory: Memory | None = None) -> dict[str, Tensor]:
        """Every tensor of the layout, as this client would use it now; what was merged into the base, and cores."""
        memory = memory or {}
        sent, base = incoming(order.params, memory.get("base"))
        whole = {**self.initial, **shifts(base), **sent, **memory.get("params", {})}
        return with_cores_of(whole, order, memory, self.bench.layout)

    def middle(self, order: Order, memory: Memory) -> Middle | None:
        """What the cores of its adapters are made of, if the order brings anything; see ``bank.client_cores``."""
        return middle_of(order, memory, self.initial, self.bench.layout)

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
        names = frozenset({*layout.names(layers), *layout.head})
        return self.alternate(order, memory, [Phase(names)], blocks=blocks)

    def alternate(
        self, order: Order, memory: Memory | None, phases: Sequence[Phase], *, blocks: Collection[int] | None = None
    ) -> Fitted:
        """Train what the phases name, in turns, as ``fit`` does; they may name tensors of its ``middle`` too."""
        return alternate(
            self.bench,
            self.train,
            self.params(order, memory),
            [replace(p, names=p.names - self.frozen, penalties=p.penalties + self.penalties) for p in phases],
            self.training,
            learning_rate_at(self.training, order.round, self.rounds),
            order.rng,
            blocks=blocks,
            middle=self.middle(order, memory or {}),
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
        params = self.params(order, memory)
        return evaluation(self.bench, columns, params, batch_size=self.batch_size, answering=self.answering)
