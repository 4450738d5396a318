"""What a method's ``work`` may call on a client, and what local training takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from torch import Tensor

from fedquilt.core.types import ClientId, Memory, Order, Params, Profile

Penalty = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""``penalty(trained, start)``, a scalar: of the tensors that are trained, by name, and of all as training began."""


@dataclass(frozen=True)
class Phase:
    """``steps`` optimiser steps (None: all there are) on the tensors ``names``, which have an optimiser of their own.

    ``rate`` scales the learning rate. What ``penalties`` give is added to the loss of each step. With ``agreement``
    above 0, that times the disagreement with the model as it was when this turn of the phase began is added, too: see
    ``client.agreement``, with its ``temperature``, over what has a label. The model of then answers without dropout.
    """

    names: frozenset[str]
    steps: int | None = None
    rate: float = 1.0
    penalties: tuple[Penalty, ...] = ()
    agreement: float = 0.0
    temperature: float = 1.0


class Extra(NamedTuple):
    """Tensors that are trained beside the model's own, by name, and the adapters' cores that are made of them.

    ``cores(tensors)`` gives the core of each adapted module, (r, r), by module path; gradients flow through it.
    """

    tensors: Params
    cores: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Fitted:
    """The trained tensors and buffers (and no others), the number of rows of the client, and what training measured."""

    params: Params
    num_examples: int
    metrics: dict[str, float]


class Worker(Protocol):
    """One client as a method's ``work`` sees it: it trains and scores its own rows, and hands out neither.

    ``client.client.Client`` is one; the server's own client, with proxy rows, is another. An order and a memory stand
    for a model, see ``core.method.Method.model``. Nothing here changes the worker: ``freezing`` and ``penalised`` give
    another one.
    """

    @property
    def id(self) -> ClientId:
        """The client's number, which its replies bear."""
        ...

    @property
    def profile(self) -> Profile:
        """What the server knows of the client, too."""
        ...

    def params(self, order: Order, memory: Memory | None = None) -> Params:
        """Every tensor of the client's layout as it would be used now, and shifts and cores beside them."""
        ...

    def fit(
        self, order: Order, memory: Memory | None, layers: Collection[int], *, blocks: Collection[int] | None = None
    ) -> Fitted:
        """Train the tensors of ``layers`` and the head on the client's rows, for as many steps as it is set to.

        ``blocks``, if given, are the only transformer blocks that are run. The learning rate is that of the order's
        round, and all draws are from the order's stream.

        Raises
        ------
        TrainingError
            if the client has no rows, or the loss or a gradient is not finite.
        """
        ...

    def alternate(
        self,
        order: Order,
        memory: Memory | None,
        phases: Sequence[Phase],
        *,
        blocks: Collection[int] | None = None,
        extra: Extra | None = None,
    ) -> Fitted:
        """Train as ``fit`` does, in phases that take turns; they may name tensors of ``extra`` besides the model's."""
        ...

    def freezing(self, names: Collection[str]) -> Self:
        """The client, which leaves the tensors ``names`` as they are when it trains, and does not give them back."""
        ...

    def penalised(self, penalty: Penalty) -> Self:
        """The client, whose loss has the penalty added, once to each optimiser step; the loss it reports has not."""
        ...

    def layer_scores(
        self, order: Order, memory: Memory | None = None, *, kind: str = "trace", objective: str = "log-prob"
    ) -> list[float]:
        """The Fisher score of every transformer block on the client's training rows, see ``client.probe``."""
        ...

    def evaluate(self, order: Order, memory: Memory | None = None, split: str = "test") -> dict[str, float]:
        """Loss, accuracy and number of examples on held-out rows of the client; empty if it has no such rows."""
        ...
