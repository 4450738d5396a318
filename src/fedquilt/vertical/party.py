"""What a party does between two messages: it learns from rows of its own, embeds rows, and follows gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict, TypeVar, cast

import torch
from torch import Tensor

from fedquilt.client.client import Client
from fedquilt.client.fit import batches
from fedquilt.client.workbench import Batch
from fedquilt.core.errors import TrainingError
from fedquilt.core.rng import Rng
from fedquilt.core.training import learning_rate_at
from fedquilt.core.types import Memory, Order, Params
from fedquilt.core.vertical import ALIGNED
from fedquilt.core.worker import Worker
from fedquilt.data.table import take
from fedquilt.vertical.lesson import Facts, Lesson, OwnLoss
from fedquilt.vertical.optimiser import Moments, Optimiser
from fedquilt.vertical.prior import histogram, learned
from fedquilt.vertical.prototypes import unit
from fedquilt.vertical.selection import Tally
from fedquilt.vertical.semantic import Semantic, made_of

PROTOTYPES = "prototypes"
"""The name of the class prototypes among a party's trained tensors."""

Value = TypeVar("Value")


class PartyState(TypedDict):
    """What a party remembers, a tree that never leaves it.

    Attributes
    ----------
    params
        Every trainable tensor of its encoder.
    prototypes
        The class prototypes, (C, m).
    prior
        The class prior of its own unaligned rows, float64 (C,).
    moments
        What its optimiser remembers.
    extra
        The tensors that the method adds, by name, see ``OwnLoss.extra``; absent where it adds none.
    kept
        The share of each class that was kept in the last round of steps on its own rows, (C,), see ``selection.Tally``;
        absent where all rows are.
    attributes
        Of each class, (C, a), where prototypes are made of them by tensors of ``extra``, see ``semantic``; otherwise
        absent, and the prototypes are learned themselves.
    """

    params: Params
    prototypes: Tensor
    prior: Tensor
    moments: Moments
    extra: NotRequired[Params]
    kept: NotRequired[Tensor]
    attributes: NotRequired[Tensor]


class Learning:
    """A party while it learns: its encoder with gradients, its prototypes and the method's own tensors."""

    def __init__(
        self, party: Client, free: Tensor, extra: Params, optimiser: Optimiser, attributes: Tensor | None = None
    ) -> None:
        self.party, self.free, self.extra, self.optimiser, self.attributes = party, free, extra, optimiser, attributes

    @property
    def prototypes(self) -> Tensor:
        """The class prototypes as they are now, (C, m); gradients flow through them."""
        return self.free if self.attributes is None else made_of(self.attributes, self.extra)

    def embed(self, rows: Batch) -> Tensor:
        """The unit embeddings of rows, (n, m); gradients flow through them."""
        return unit(self.party.bench.forward(rows)[0])


def party_of(worker: Worker) -> Client:
    """The worker as a party of a vertical federation.

    Raises
    ------
    TrainingError
        if it is a worker of another kind.
    """
    if not isinstance(worker, Client):
        raise TrainingError("the method is of vertical federations, and this client is no party of one")
    return worker


def begun(
    party: Client, memory: Memory, shape: tuple[int, int], rng: Rng, semantic: Semantic | None = None
) -> PartyState:
    """What the party remembers; before the first message, random prototypes and the histogram of its labels.

    Parameters
    ----------
    party, memory
        The party, and its memory.
    shape
        That of the prototypes, (C, m).
    rng
        The random stream of the first prototypes.
    semantic
        How prototypes are made from attributes of classes; None if they are learned themselves.
    """
    if PROTOTYPES in memory:
        return cast(PartyState, {key: memory[key] for key in PartyState.__annotations__ if key in memory})
    drawn = torch.randn(*shape, generator=rng.child(PROTOTYPES).torch())
    known = party.train["labels"][party.train["labels"] >= 0]
    state = PartyState(params=party.initial, prototypes=unit(drawn), prior=histogram(known, shape[0]), moments={})
    if semantic is not None:
        state["extra"], state["attributes"] = semantic.init(shape[1], rng.child("semantic")), semantic.attributes
        state["prototypes"] = made_of(state["attributes"], state["extra"])
    return state


def chosen_rows(party: Client, rows: Sequence[int]) -> dict[str, Tensor]:
    """The aligned rows that an order names by number, in its order.

    Raises
    ------
    TrainingError
        if the party has not so many aligned rows.
    """
    there = party.splits[ALIGNED]
    if any(not 0 <= row < len(there["labels"]) for row in rows):
        raise TrainingError(f"the order names aligned rows that this party has not: it has {len(there['labels'])}")
    return take(there, rows)


def learning(
    party: Client, state: PartyState, round: int, rng: Rng, use: Callable[[Learning], Value]
) -> tuple[PartyState, Value]:
    """What the party remembers after ``use`` has trained it, and what ``use`` returns.

    Parameters
    ----------
    party, state
        The party, and what it remembers before.
    round
        The round, which gives the learning rate.
    rng
        The random stream of dropout.
    use
        It trains the party.
    """
    bench = party.bench
    bench.load(party.params(Order({}), {"params": state["params"]}))
    names = {*bench.layout.depth} - party.frozen
    prototypes = state["prototypes"].to(bench.device).clone()
    extra = {name: tensor.to(bench.device).clone() for name, tensor in state.get("extra", {}).items()}
    attributes = state.get("attributes")
    beside = extra if attributes is not None else {PROTOTYPES: prototypes, **extra}
    rate = learning_rate_at(party.training, round, party.rounds)
    again = party.training.gradient_checkpointing
    with bench.training({*names, *beside}, beside, recompute=again), rng.child("dropout").scope():
        tensors = {name: tensor for name, tensor in bench.parameters.items() if name in names}
        optimiser = Optimiser({**tensors, **beside}, party.training, rate, state["moments"])
        learner = Learning(party, prototypes, extra, optimiser, attributes)
        used = use(learner)
        prototypes = learner.prototypes.detach()
    params = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
    after = PartyState(
        params={**state["params"], **params, **bench.state(names)},
        prototypes=prototypes.to("cpu", copy=True),
        prior=state["prior"],
        moments=optimiser.moments(),
    )
    if extra:
        after["extra"] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in extra.items()}
    if attributes is not None:
        after["attributes"] = attributes
    return after, used


def learned_alone(
    party: Client,
    state: PartyState,
    own: OwnLoss,
    prior: Tensor,
    round: int,
    rng: Rng,
    facts: Facts | None = None,
) -> PartyState:
    """The party after a round of steps on its unaligned rows; unchanged if it has none.

    Parameters
    ----------
    party, state
        The party, and what it remembers before.
    own
        How it learns.
    prior
        The class prior that guides it, (C,).
    round, rng
        The round, and the random stream of minibatches.
    facts
        What it was told of aligned rows, if anything.
    """
    rows = party.train
    num_rows = len(rows["labels"])
    if num_rows == 0 or party.bench.device.type == "meta":
        return state
    labelled = bool((rows["labels"] >= 0).all())
    if not labelled and not own.unlabelled:
        return state
    prior, tally = prior.to(party.bench.device), Tally(len(prior))
    counted = torch.bincount(rows["labels"], minlength=len(prior)) if "attributes" in state and labelled else None
    known = None if counted is None else (counted > 0).to(party.bench.device)

    def steps(of: Learning) -> Tensor:
        moving = state["prior"]
        for number, chosen in enumerate(batches(num_rows, party.training, rng.child("batches"))):
            batch = take(rows, chosen)
            labels = batch["labels"].to(party.bench.device) if labelled else None
            lesson = Lesson(
                rows=batch,
                labels=labels,
                embed=of.embed,
                prototypes=of.prototypes,
                prior=prior,
                extra=of.extra,
                place=party.profile.id,
                rng=rng.child("step", number),
                facts=facts,
                round=round,
                known=known,
            )
            loss = own.loss(lesson)
            if own.kept is not None:
                tally.add(*own.kept(lesson))
            of.optimiser.step(loss)
            if not labelled and own.plan is not None:
                with torch.no_grad():
                    found = own.plan(lesson.embeddings.detach(), of.prototypes.detach(), prior)
                moving = learned(moving, found.cpu(), own.rate)
        return moving

    after, moved = learning(party, state, round, rng, steps)
    told = {} if own.kept is None else {"kept": tally.shares()}
    return cast(PartyState, {**after, "prior": moved, **told})


def embedded(party: Client, state: PartyState, rows: Batch) -> Tensor:
    """The unit embeddings of rows, float32 (n, m) on the CPU, by the party's encoder as it is."""
    num_rows, width = len(rows["labels"]), state["prototypes"].shape[1]
    bench = party.bench
    if bench.device.type == "meta":
        return torch.zeros(num_rows, width)
    bench.load(party.params(Order({}), {"params": state["params"]}))
    with torch.no_grad():
        parts = [
            unit(bench.forward(take(rows, part))[0].float()).cpu()
            for part in torch.arange(num_rows).split(party.batch_size)
        ]
    return torch.cat(parts) if parts else torch.zeros(0, width)


def followed(
    party: Client, state: PartyState, rows: Batch, down: Tensor, prototypes: Tensor, round: int, rng: Rng
) -> PartyState:
    """The party after one step for each minibatch along gradients that it was sent.

    With several minibatches the gradients are those at the encoder that embedded them, as the steps before have not
    reached the sender.

    Parameters
    ----------
    party, state
        The party, and what it remembers before.
    rows
        The rows of all minibatches, one after another.
    down
        The gradient of the joint loss with respect to each unit embedding, (minibatches, n, m).
    prototypes
        The gradient with respect to the prototypes, (C, m), summed over minibatches.
    round, rng
        The round, and the random stream of dropout.
    """
    if party.bench.device.type == "meta":
        return state

    def steps(of: Learning) -> None:
        share = (prototypes / len(down)).to(of.prototypes.device)
        for chosen, gradient in zip(
            torch.arange(down.shape[0] * down.shape[1]).view(down.shape[:2]), down, strict=True
        ):
            embeddings = of.embed(take(rows, chosen))
            # the gradient of this sum is the gradient that was sent
            along: Any = (embeddings * gradient.to(embeddings)).sum() + (of.prototypes * share).sum()
            of.optimiser.step(along)

    return learning(party, state, round, rng, steps)[0]
