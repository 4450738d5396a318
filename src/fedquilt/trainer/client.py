"""A Trainer as the worker that a method's ``work`` is called with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedquilt.core.errors import TrainingError
from fedquilt.core.method import Exchange, Method, overlay
from fedquilt.core.rng import Rng
from fedquilt.core.types import Layout, Memory, Order, Params, Profile, Reply
from fedquilt.core.worker import Extra, Fitted, Penalty, Phase, Value, Worker
from fedquilt.trainer.rounds import Files, failures_kept_here, trained
from fedquilt.trainer.tensors import copied, loaded

IGNORED = -100
"""The label of a place that is not scored, everywhere in transformers."""
KEPT = "trainer"
"""The entry of a client's memory with what its Trainer resumes from."""


@dataclass
class Resumed:
    """What the Trainer resumes from, and goes on from after the exchange."""

    files: Files = field(default_factory=dict)


@dataclass(frozen=True)
class TrainerClient:
    """The worker (``core.worker.Worker``) of a client whose local training is a Trainer's.

    It receives tensors, trains and sends tensors; methods that need more of a client are refused with the reason.

    Attributes
    ----------
    profile
        The client's profile.
    trainer
        The Trainer.
    parameters
        The parameters of its model that are trained, by fedquilt's names.
    layout
        Their layout.
    initial
        Their values before the first round.
    rounds
        Number of rounds of the run.
    keep
        Whether the optimiser's state is kept from one round to the next.
    model
        ``Method.model`` of the method.
    frozen
        Names of tensors that it does not train.
    resumed
        What the Trainer resumes from.
    """

    profile: Profile
    trainer: Any
    parameters: Mapping[str, nn.Parameter]
    layout: Layout
    initial: Params
    rounds: int
    keep: bool = True
    model: Callable[[Profile, Params, Order, Memory], Params] = overlay
    frozen: frozenset[str] = frozenset()
    resumed: Resumed = field(default_factory=Resumed)

    @property
    def id(self) -> int:
        """The client's number."""
        return self.profile.id

    @property
    def num_tokens(self) -> int:
        """The number of tokens that its language model gives a probability to."""
        return int(self.trainer.model.config.get_text_config().vocab_size)

    def params(self, order: Order, memory: Memory | None = None) -> Params:
        """Every tensor of the layout under this order and memory."""
        return self.model(self.profile, self.initial, order, memory or {})

    def freezing(self, names: Collection[str]) -> TrainerClient:
        """The client with the tensors ``names`` frozen."""
        return replace(self, frozen=self.frozen | frozenset(names))

    def fit(
        self, order: Order, memory: Memory | None, layers: Collection[int], *, blocks: Collection[int] | None = None
    ) -> Fitted:
        """Train the tensors of ``layers`` and the head by one round of the Trainer."""
        names = frozenset({*self.layout.names(layers), *self.layout.head})
        return self.alternate(order, memory, [Phase(names)], blocks=blocks)

    def alternate(
        self,
        order: Order,
        memory: Memory | None,
        phases: Sequence[Phase],
        *,
        blocks: Collection[int] | None = None,
        extra: Extra | None = None,
    ) -> Fitted:
        """Train the tensors of one plain phase by one round of the Trainer.

        Parameters
        ----------
        order, memory
            They stand for the model that training starts from.
        phases
            One phase, without penalties, rates or agreement: these are the Trainer's own business.
        blocks, extra
            Must be None.
        """
        if blocks is not None:
            _refuse("models of only some blocks")
        if extra is not None or len(phases) != 1 or phases[0] != Phase(phases[0].names):
            _refuse("training in several phases, or with terms added to the loss (such as training.proximal)")
        names = phases[0].names - self.frozen
        self._load(order, memory)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in names)
        try:
            done = trained(self.trainer, order.round, self.rounds, self.resumed.files, keep=self.keep)
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
        self.resumed.files = done.files
        own = copied({name: parameter for name, parameter in self.parameters.items() if name in names})
        own = {
            name: value.to(order.params[name].dtype) if name in order.params else value for name, value in own.items()
        }
        metrics = {"loss": done.loss, "steps": float(done.steps)}
        return Fitted(own, self.profile.num_examples, metrics)

    def evaluate(self, order: Order, memory: Memory | None = None, split: str = "test") -> dict[str, float]:
        """Loss, accuracy and number of examples on the Trainer's ``eval_dataset``; empty if it has none."""
        if split != "test" or self.trainer.eval_dataset is None:
            return {}
        self._load(order, memory)
        with failures_kept_here():
            return scores(self.trainer)

    def _load(self, order: Order, memory: Memory | None) -> None:
        params = self.params(order, memory)
        if more := sorted(params.keys() - self.parameters.keys()):
            _refuse(f"changes of the base or matrices between factors ('{more[0]}')")
        loaded(self.parameters, params)

    def penalised(self, penalty: Penalty, *, runs_model: bool = False) -> NoReturn:
        """Raise TrainingError, like all that follow: the loss is the Trainer's own."""
        _refuse("terms added to the loss (such as training.proximal)")

    def layer_scores(
        self, order: Order, memory: Memory | None = None, *, kind: str = "trace", objective: str = "log-prob"
    ) -> NoReturn:
        """Raise TrainingError."""
        _refuse("scores of layers")

    def ends(self, layers: Collection[int]) -> NoReturn:
        """Raise TrainingError."""
        _refuse("adapters in common coordinates")

    def bases(self) -> NoReturn:
        """Raise TrainingError."""
        _refuse("adapters in common coordinates")

    def seen(self, points: Params) -> NoReturn:
        """Raise TrainingError."""
        _refuse("adapters in common coordinates")

    def own_prompts(self, count: int, rng: Rng) -> NoReturn:
        """Raise TrainingError."""
        _refuse("texts")

    def posing(self, prompts: Sequence[str], completions: Sequence[str]) -> NoReturn:
        """Raise TrainingError."""
        _refuse("texts")

    def complete(
        self,
        order: Order,
        memory: Memory | None,
        prompts: Sequence[str],
        *,
        new_tokens: int = 64,
        temperature: float = 0.0,
    ) -> NoReturn:
        """Raise TrainingError.

        Parameters
        ----------
        order, memory, prompts, new_tokens, temperature
            As for ``core.worker.Worker.complete``.
        """
        _refuse("texts")

    def log_probs(
        self, order: Order, memory: Memory | None, prompts: Sequence[str], completions: Sequence[str]
    ) -> NoReturn:
        """Raise TrainingError."""
        _refuse("texts")

    def lending(self, order: Order, memory: Memory | None, use: Callable[[Any], Value]) -> NoReturn:
        """Raise TrainingError."""
        _refuse("the model itself")


def resuming(method: Method) -> Method:
    """The method whose clients keep what their Trainers resume from in their memories, which never travel."""

    def of(exchange: Exchange) -> Exchange:
        def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
            assert isinstance(client, TrainerClient)
            resumed = Resumed(dict(memory.get(KEPT, {})))
            reply, after = exchange.work(replace(client, resumed=resumed), order, memory)
            return reply, {**after, KEPT: resumed.files} if resumed.files else after

        return exchange._replace(work=work)

    return method._replace(
        exchanges=tuple(map(of, method.exchanges)), closing=tuple(of(exchange) for exchange in method.closing)
    )


def scores(trainer: Any) -> dict[str, float]:
    """``loss`` and ``accuracy`` over all labels of a Trainer's ``eval_dataset``, and ``examples``, its rows.

    A language model's labels are those of the next tokens, as in fedquilt's own evaluation; the loss is the
    cross-entropy, whatever the Trainer minimises.

    Raises
    ------
    TrainingError
        if a batch has no labels, or the model gives no logits.
    """
    model, sums = trainer.model, torch.zeros(3, dtype=torch.float64)  # losses, labels, right ones
    was_training, examples = model.training, 0
    model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            for batch in trainer.get_eval_dataloader():
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                labels, logits = batch.get("labels"), getattr(model(**inputs), "logits", None)
                if labels is None or logits is None:
                    raise TrainingError("the trainer's eval_dataset has no labels, or its model no logits")
                examples += len(labels)
                sums += _sums(logits, labels)
    finally:
        model.train(was_training)
    loss, count, right = (float(one) for one in sums)
    return {"loss": loss / max(1.0, count), "accuracy": right / max(1.0, count), "examples": float(examples)}


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dim() == 2:  # (rows, tokens): each place predicts the next token
        logits, labels = logits[:, -labels.shape[1] :][:, :-1], labels[:, 1:]
    logits, labels = logits.float().flatten(0, -2), labels.flatten()
    loss = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    right = (logits.argmax(-1) == labels).sum()
    return torch.stack([loss.double(), (labels != IGNORED).sum().double(), right.double()]).cpu()


def _refuse(what: str) -> NoReturn:
    raise TrainingError(
        f"the method needs {what}, which a patched Trainer cannot give; choose a method whose clients "
        "train and send the tensors that they receive"
    )
