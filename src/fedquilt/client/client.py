"""One client: its profile, its rows, and the model that it shares with the clients of its architecture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedquilt.client.apart import trained_apart
from fedquilt.client.generation import Answering, Sampling
from fedquilt.client.job import Fitting, Job, alone
from fedquilt.client.probe import fisher_diagonal, layer_scores
from fedquilt.client.public import PublicInputs
from fedquilt.client.score import evaluation
from fedquilt.client.texts import Language, Lent, completed, log_probabilities, prompts_of, text_columns
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.errors import TrainingError
from fedquilt.core.method import overlay
from fedquilt.core.rng import Rng
from fedquilt.core.server import Share
from fedquilt.core.training import Training, learning_rate_at
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile
from fedquilt.core.worker import Extra, Fitted, Penalty, Phase, Value


@dataclass(frozen=True)
class Client:
    """The worker (``core.worker.Worker``) that a method's ``work`` is given.

    Attributes
    ----------
    profile
        The client's profile.
    bench
        The workbench with the model of its architecture.
    initial
        Every tensor of the layout before the first round.
    training
        How it trains.
    rounds
        Number of rounds of the run.
    train
        Its training rows.
    splits
        Its held-out rows by name (``"test"``, ``"validation"``).
    batch_size
        Batch size of evaluations.
    frozen
        Names of tensors that it does not train, whatever layer they are in.
    penalties
        Terms that are added to its loss.
    answering
        How a language model's generated answers are evaluated; None to evaluate its token accuracy.
    language
        How its language model reads and writes texts; None for other models.
    model
        ``Method.model`` of the method.
    share
        Which texts may leave the client, see ``[server] share``; all that are its own leave by ``own_prompts``.
    ids, id_key
        The ids of its rows and the key that all parties share, for a vertical federation that aligns them.
    fitting
        How its local training is carried out: alone, unless the engine trains several clients at the same time.
    runs_model
        Whether one of its penalties runs the model.
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
    language: Language | None = None
    model: Callable[[Profile, Params, Order, Memory], Params] = overlay
    share: Share = "public"
    ids: tuple[str, ...] = ()
    id_key: bytes = b""
    fitting: Fitting = alone
    runs_model: bool = False

    @property
    def id(self) -> ClientId:
        """The client's partition number."""
        return self.profile.id

    @property
    def num_tokens(self) -> int:
        """The number of tokens that the language model gives a probability to, also where there are only shapes."""
        model: Any = self.bench.model
        return int(model.config.get_text_config().vocab_size)

    def params(self, order: Order, memory: Memory | None = None) -> Params:
        """Every tensor of the layout under this order and memory, with shifts of the base and cores."""
        return self.model(self.profile, self.initial, order, memory or {})

    def freezing(self, names: Collection[str]) -> Client:
        """The client with the tensors ``names`` frozen."""
        return replace(self, frozen=self.frozen | frozenset(names))

    def penalised(self, penalty: Penalty, *, runs_model: bool = False) -> Client:
        """The client with the penalty added to the training loss, once for each optimiser step."""
        return replace(self, penalties=(*self.penalties, penalty), runs_model=self.runs_model or runs_model)

    def fit(
        self, order: Order, memory: Memory | None, layers: Collection[int], *, blocks: Collection[int] | None = None
    ) -> Fitted:
        """Train the adapters of ``layers`` and the head on the client's training rows.

        Tensors in ``frozen`` are not trained and not part of the result. If ``blocks`` is given, only these transformer
        blocks are part of the model. The learning rate is that of the order's round.
        """
        layout = self.bench.layout
        names = frozenset({*layout.names(layers), *layout.head})
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
        """Train as ``fit`` does, in phases that take turns.

        Parameters
        ----------
        order, memory
            They stand for the model that training starts from.
        phases
            The phases of one cycle; the client's frozen tensors are left out of each, and its penalties added to each.
        blocks
            The numbers of the only transformer blocks that are part of the model; all blocks for None.
        extra
            Further tensors to train, from which the adapters' cores are made.
        """
        own = (replace(p, names=p.names - self.frozen, penalties=p.penalties + self.penalties) for p in phases)
        job = Job(
            self.bench,
            self.train,
            self.params(order, memory),
            tuple(own),
            self.training,
            learning_rate_at(self.training, order.round, self.rounds),
            order.rng,
            blocks,
            extra,
            self.runs_model,
        )
        if self.bench.public is None or self.bench.public.adapters.weight is None:
            return self.fitting(job)

        def train(phases: Sequence[Phase]) -> Fitted:
            return alone(replace(job, phases=tuple(phases)))

        return trained_apart(self.bench, self.splits.get("validation"), job.params, job.phases, train)

    def layer_scores(
        self, order: Order, memory: Memory | None = None, *, kind: str = "trace", objective: str = "log-prob"
    ) -> list[float]:
        """The Fisher score of every block on the client's training rows, see ``probe.layer_scores``."""
        if self.bench.device.type == "meta":  # planning: shapes without numbers
            return [1.0] * self.bench.layout.num_layers
        fisher = fisher_diagonal(self.bench, self.train, self.params(order, memory), objective=objective)
        return layer_scores(fisher, self.bench.layout, kind)

    def ends(self, layers: Collection[int]) -> frozenset[str]:
        """The names of the ends of adapters in common coordinates in these blocks."""
        return self.bench.ends(layers)

    def bases(self) -> Params:
        """The bases of the model's features on the public inputs, by ``basis.<place>``."""
        return _of(self.bench).bases()

    def seen(self, points: Params) -> Params:
        """The common coordinates of held-out public inputs, by ``seen.<place>``, for these points."""
        public = _of(self.bench)
        public.place(points)
        return public.seen()

    def own_prompts(self, count: int, rng: Rng) -> list[str]:
        """So many prompts of the client's rows, drawn without replacement; only if ``share`` is ``"private"``.

        Raises
        ------
        TrainingError
            if private texts must not travel, or the model is no language model.
        """
        if self.share != "private":
            raise TrainingError("the method asks for private texts, which server.share = 'public' does not let out")
        if self.bench.device.type == "meta":
            return [""] * count
        return prompts_of(self.language, self.train, rng.numpy().permutation(len(self.train["labels"]))[:count])

    def posing(self, prompts: Sequence[str], completions: Sequence[str]) -> Client:
        """The client with these texts in place of its training rows, which ``Fitted.num_examples`` then counts."""
        if self.bench.device.type == "meta":  # planning: no tokenizer
            return self
        return replace(self, train=text_columns(self.language, prompts, completions))

    def complete(
        self,
        order: Order,
        memory: Memory | None,
        prompts: Sequence[str],
        *,
        new_tokens: int = 64,
        temperature: float = 0.0,
    ) -> list[str]:
        """The model's completion of each prompt, greedily or drawn; empty where only shapes are planned.

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
        params = self.params(order, memory)
        sampling = Sampling(temperature, order.rng.child("completions")) if temperature else None
        return completed(self.bench, self.language, params, prompts, new_tokens, self.batch_size, sampling=sampling)

    def log_probs(
        self, order: Order, memory: Memory | None, prompts: Sequence[str], completions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """The log-probability of each completion after its prompt, and its number of tokens, (texts,)."""
        if self.bench.device.type == "meta" or not prompts:
            return torch.zeros(len(prompts)), torch.zeros(len(prompts), dtype=torch.long)
        columns = text_columns(self.language, prompts, completions)
        self.bench.load(self.params(order, memory))
        return log_probabilities(self.bench, columns, self.batch_size)

    def lending(self, order: Order, memory: Memory | None, use: Callable[[Lent], Value]) -> Value:
        """What ``use`` makes of the language model with these tensors loaded; see ``core.worker.Worker.lending``."""
        self.bench.load(self.params(order, memory))
        return use(Lent(self.bench, partial(text_columns, self.language), self.language, self.batch_size))

    def evaluate(self, order: Order, memory: Memory | None = None, split: str = "test") -> dict[str, float]:
        """Loss and accuracy on one of the client's held-out splits; empty if the client has no such rows."""
        columns = self.splits.get(split)
        if columns is None or len(columns["labels"]) == 0:
            return {}
        params = self.params(order, memory)
        return evaluation(self.bench, columns, params, batch_size=self.batch_size, answering=self.answering)


def _of(bench: Workbench) -> PublicInputs:
    if bench.public is None:
        raise ValueError("the adapters are not in common coordinates, so there are no public inputs")
    return bench.public
