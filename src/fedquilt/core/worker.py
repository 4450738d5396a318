"""The interface of a client for a method's ``work``: training, evaluation and layer scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from torch import Tensor

from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile

Value = TypeVar("Value")

Penalty = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""``penalty(trained, start)``, a scalar term of the loss: the trained tensors by name, and all tensors at the start."""


@dataclass(frozen=True)
class Phase:
    """One phase of alternating training: which tensors are trained, for how long and with which loss.

    Attributes
    ----------
    names
        Names of the trained tensors, which have an optimiser of their own.
    steps
        Number of optimiser steps before the next phase; None for all steps.
    rate
        Factor of the learning rate.
    rates
        Factors of the learning rate of single tensors, in place of ``rate``.
    penalties
        Terms that are added to the loss of each step.
    agreement
        Weight of the disagreement with the model as it was when this turn of the phase began, see
        ``client.agreement``. It is computed over labelled positions; that model is evaluated without dropout.
    temperature
        Temperature of the disagreement.
    """

    names: frozenset[str]
    steps: int | None = None
    rate: float = 1.0
    penalties: tuple[Penalty, ...] = ()
    agreement: float = 0.0
    temperature: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)


def at_once(phases: Iterable[Phase]) -> Phase:
    """One phase in place of these: all their tensors at once, at the rates of their phases, with all penalties."""
    chosen = tuple(phases)
    rates = {name: phase.rate for phase in chosen for name in phase.names}
    return Phase(frozenset(rates), penalties=tuple(own for phase in chosen for own in phase.penalties), rates=rates)


class Extra(NamedTuple):
    """Tensors that are trained besides the model's own, and the cores of the adapters that are computed from them.

    ``cores(tensors)`` gives the core of each adapted module, (r, r), by module path; gradients flow through it.
    """

    tensors: Params
    cores: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Fitted:
    """The result of local training: only the trained tensors and buffers, the client's number of rows, and metrics."""

    params: Params
    num_examples: int
    metrics: dict[str, float]


class Worker(Protocol):
    """One client as a method's ``work`` sees it: it trains and evaluates models on its own rows, which stay private.

    ``client.client.Client`` implements it. The server's own client holds the proxy set. An order and a memory stand
    for a model, see ``core.method.Method.model``. A worker is immutable: ``freezing`` and ``penalised`` return another.
    """

    @property
    def id(self) -> ClientId:
        """The client's number, for its replies."""
        ...

    @property
    def profile(self) -> Profile:
        """The client's profile, which the server knows too."""
        ...

    @property
    def num_tokens(self) -> int:
        """The number of tokens that its language model gives a probability to."""
        ...

    def params(self, order: Order, memory: Memory | None = None) -> Params:
        """Every tensor of the client's layout under this order and memory, with shifts and cores."""
        ...

    def fit(
        self, order: Order, memory: Memory | None, layers: Collection[int], *, blocks: Collection[int] | None = None
    ) -> Fitted:
        """Train the tensors of ``layers`` and the head on the client's rows for its configured number of steps.

        If ``blocks`` is given, only these transformer blocks are part of the model. The learning rate is that of the
        order's round, and all draws are from the order's stream.

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
        """Train as ``fit`` does, in phases that take turns.

        Parameters
        ----------
        order, memory
            They stand for the model that training starts from.
        phases
            The phases of one cycle; they may name tensors of ``extra`` besides the model's.
        blocks
            If given, only these transformer blocks are part of the model.
        extra
            Further tensors to train.
        """
        ...

    def freezing(self, names: Collection[str]) -> Self:
        """The client with the tensors ``names`` frozen: they are not trained, and not part of a result of ``fit``."""
        ...

    def penalised(self, penalty: Penalty, *, runs_model: bool = False) -> Self:
        """The client with the penalty added to the loss of each optimiser step; the loss it reports is without it.

        A penalty that runs the client's own model must say so, because such a client is trained alone.
        """
        ...

    def layer_scores(
        self, order: Order, memory: Memory | None = None, *, kind: str = "trace", objective: str = "log-prob"
    ) -> list[float]:
        """The Fisher score of every transformer block on the client's training rows, see ``client.probe``.

        Parameters
        ----------
        order, memory
            They stand for the model that is scored.
        kind, objective
            The score and the function that is differentiated, see ``client.probe``.
        """
        ...

    def ends(self, layers: Collection[int]) -> frozenset[str]:
        """The names of the ends of adapters in common coordinates in these blocks, which ``alternate`` can train.

        They are not in the layout: ends that nobody has trained are the axes of the client's model.
        """
        ...

    def bases(self) -> Params:
        """The bases of the model's features on the public inputs, by ``basis.<place>``; no row of the client is read.

        For adapters in common coordinates only, see ``aggregate.axes``.
        """
        ...

    def seen(self, points: Params) -> Params:
        """The common coordinates of held-out public inputs, by ``seen.<place>``, for these points."""
        ...

    def own_prompts(self, count: int, rng: Rng) -> list[str]:
        """So many prompts of the client's own rows, drawn without replacement: private texts.

        Raises
        ------
        TrainingError
            unless the run file lets private texts travel (``[server] share = "private"``).
        """
        ...

    def posing(self, prompts: Sequence[str], completions: Sequence[str]) -> Self:
        """The client with these texts in place of its training rows, for language models.

        ``Fitted.num_examples`` then counts these texts; the weight of a reply is at most ``profile.num_examples``.
        """
        ...

    def complete(
        self,
        order: Order,
        memory: Memory | None,
        prompts: Sequence[str],
        *,
        new_tokens: int = 64,
        temperature: float = 0.0,
    ) -> list[str]:
        """The language model's completion of each prompt.

        Parameters
        ----------
        order, memory
            They stand for the model.
        prompts
            The texts to complete.
        new_tokens
            The largest number of tokens of a completion.
        temperature
            0 for greedy decoding; else of the softmax that tokens are drawn from, with the order's stream.
        """
        ...

    def log_probs(
        self, order: Order, memory: Memory | None, prompts: Sequence[str], completions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """The log-probability of each completion after its prompt, and the completion's number of tokens, (texts,).

        Both are those of the model's own tokens, the end token among them.
        """
        ...

    def lending(self, order: Order, memory: Memory | None, use: Callable[[Any], Value]) -> Value:
        """What ``use`` makes of the client's language model with these tensors loaded.

        ``use`` is given a ``client.texts.Lent``. It reads the model and trains nothing: a loss for training is a
        penalty, see ``penalised``, that may call the lent model's forward pass.

        Raises
        ------
        TrainingError
            if the model is no language model.
        """
        ...

    def evaluate(self, order: Order, memory: Memory | None = None, split: str = "test") -> dict[str, float]:
        """Loss, accuracy and number of examples on the client's rows of this split; empty if it has none."""
        ...
