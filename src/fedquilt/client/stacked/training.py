"""Optimiser steps of several clients at once: one forward and one backward pass over the rows of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count, cycle

import torch
from torch import Tensor

from fedquilt.client.agreement import disagreement
from fedquilt.client.fit import Earlier, earlier_of, optimizer_of, start_of
from fedquilt.client.job import Job
from fedquilt.client.stacked.dropout import Extent, OwnDropout
from fedquilt.client.stacked.member import Member, Outcome
from fedquilt.client.stacked.rows import joined
from fedquilt.client.stacked.stack import Stack, stacked
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.profiling import span
from fedquilt.core.types import Params
from fedquilt.core.worker import Phase


class Together:
    """The training of a stack of clients, whose members leave it when they have made their steps, or fail.

    Parameters
    ----------
    stack, members
        The stack and its clients, in the same order.
    dropout
        Drops rows by the clients' own streams; None where the model drops nothing.
    """

    def __init__(self, stack: Stack, members: Sequence[Member], dropout: OwnDropout | None) -> None:
        self.stack, self.bench, self.members, self.dropout = stack, stack.bench, list(members), dropout
        self.outcomes: dict[int, Outcome] = {}
        self.step = 0
        first = members[0].job
        self.turns = [
            optimizer_of(self.trained(place), first.training, first.learning_rate, phase, fused=True)
            for place, phase in enumerate(first.phases)
        ]
        self.start = [_start(self.bench, member.job) for member in members]  # as penalties see them

    def trained(self, place: int) -> dict[str, Tensor]:
        """The stacks of the tensors that any client trains in this phase."""
        named = frozenset[str]().union(*(member.job.phases[place].names for member in self.members))
        return {name: tensor for name, tensor in self.stack.tensors.items() if name in named}

    def run(self) -> None:
        """Let the phases take turns until every client is done."""
        first = self.members[0].job
        making = nullcontext() if first.extra is None else self.bench.making_cores(self._cores)
        with making, self.dropout or nullcontext():
            self._leave()
            for place in cycle(range(len(first.phases))):
                if not self.members:
                    break
                self._turn(place, first.phases[place])

    def _turn(self, place: int, phase: Phase) -> None:
        trained = self.trained(place)
        with self.bench.training({*trained}, self.stack.beside), self._earlier(trained, phase) as earlier:
            for _ in range(phase.steps) if phase.steps is not None else count():
                self._step(place, trained, earlier)
                self._leave()
                if not self.members:
                    break

    def _step(self, place: int, trained: Mapping[str, Tensor], earlier: Earlier | None) -> None:
        self.step += 1
        training, optimizer = self.members[0].job.training, self.turns[place]
        optimizer.zero_grad()
        for member, loss in zip(self.members, self._backward(place, earlier), strict=True):
            if not math.isfinite(loss):
                member.fail("loss", loss, self.step)
        if any(member.job.phases[place].penalties for member in self.members):
            self._penalise(place)
        resting = self._rest(place, trained)
        if training.clip_norm is not None:
            self._clip(trained, training.clip_norm)
        held = {name: trained[name].detach()[rows] for name, rows in resting.items()} if training.weight_decay else {}
        with span("optimiser"):
            optimizer.step()
        with torch.no_grad():
            for name, values in held.items():
                trained[name][resting[name]] = values
        if self.bench.stepped:
            for member in self.members:
                self.bench.stepped(self.step, member.of_steps)

    def _backward(self, place: int, earlier: Earlier | None) -> list[float]:
        """Backpropagate every client's mean loss; returns the summed losses."""
        size, scoring = self.members[0].job.training.batch_size, self.bench.scoring
        parts = [next(member.drawn).split(size) for member in self.members]
        labels = [
            scoring.num_labels(m.columns["labels"][torch.cat(own)]) for m, own in zip(self.members, parts, strict=True)
        ]
        sums = [0.0] * len(self.members)
        for number in range(max(map(len, parts))):
            chosen = [own[number] if number < len(own) else own[0][:0] for own in parts]
            for at, (loss, hits) in enumerate(self._pass(place, chosen, labels, earlier)):
                sums[at] += loss
                self.members[at].correct += int(hits)
        for member, loss, counted in zip(self.members, sums, labels, strict=True):
            member.loss_sum, member.seen = member.loss_sum + loss, member.seen + counted
        return sums

    def _pass(
        self, place: int, chosen: Sequence[Tensor], labels: Sequence[int], earlier: Earlier | None
    ) -> list[list[float]]:
        """One forward and backward pass over these rows of each client; returns summed losses and hits.

        Parameters
        ----------
        place, chosen
            The number of the phase, and the rows of each client.
        labels
            The number of labels of each client's step.
        earlier
            Gives the logits of the model as it was when the turn began, for phases with agreement.
        """
        bench, members = self.bench, len(self.members)
        batch = joined([member.columns for member in self.members], chosen)
        if self.dropout is not None:
            self.dropout.extents = [
                _extent(bench, m.columns, rows) for m, rows in zip(self.members, chosen, strict=True)
            ]
        logits, given = bench.forward(batch)
        scoring = bench.scoring
        losses = scoring.loss(logits, given).view(members, -1).sum(1)  # (K,)
        hits = scoring.correct(logits.detach(), given).view(members, -1).sum(1)
        whole = losses
        if earlier is not None:
            whole = losses + self._apart(place, logits, earlier(batch), given)
        with span("backward"):
            (whole / torch.tensor([max(1, counted) for counted in labels], device=bench.device)).sum().backward()
        return torch.stack([losses.detach().double(), hits.double()], dim=1).tolist()

    def _apart(self, place: int, logits: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
        """Each client's disagreement with its earlier model, weighted and summed over its labels, (K,)."""
        scoring, phase = self.bench.scoring, self.members[0].job.phases[place]
        width, found = len(labels) // len(self.members), []
        for first in range(0, len(labels), width):
            own = slice(first, first + width)
            given, known = scoring.answers(logits[own], labels[own])
            before, _ = scoring.answers(taught[own], labels[own])
            apart = disagreement(given, before, known, phase.temperature)
            found.append(phase.agreement * scoring.num_labels(labels[own]) * apart)
        return torch.stack(found)

    @contextmanager
    def _earlier(self, trained: Mapping[str, Tensor], phase: Phase) -> Iterator[Earlier | None]:
        """Keep copies of the stacks as they are now; None if the phase does not need them."""
        if not phase.agreement:
            yield None
            return
        held = {name: tensor.detach().clone() for name, tensor in trained.items()}
        self.stack.followers.append(held)
        try:
            yield earlier_of(self.bench, trained, held)
        finally:
            self.stack.followers.remove(held)

    def _penalise(self, place: int) -> None:
        """Add the gradients of each client's penalties."""
        total, wanted = [], frozenset[str]().union(*(member.wanted for member in self.members))
        for member, start, views in zip(self.members, self.start, self.stack.views(wanted), strict=True):
            now = {name: view for name, view in views.items() if name in member.wanted}
            for penalty in member.job.phases[place].penalties:
                value = penalty(now, start)
                if not math.isfinite(float(value.detach())):
                    member.fail("penalty", float(value.detach()), self.step)
                elif value.requires_grad:
                    total.append(value)
        if total:
            torch.stack(total).sum().backward()

    def _rest(self, place: int, trained: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """Drop the gradients of tensors that a client does not train; returns the clients that rest, by tensor."""
        names = [member.job.phases[place].names for member in self.members]
        resting = {}
        for name, tensor in trained.items():
            if rows := [at for at, own in enumerate(names) if name not in own]:
                resting[name] = rows
                if tensor.grad is not None:
                    tensor.grad[rows] = 0
        return resting

    def _clip(self, trained: Mapping[str, Tensor], bound: float) -> None:
        """Scale every client's gradients to a norm of at most ``bound``."""
        grads = [tensor.grad for tensor in trained.values() if tensor.grad is not None]
        if not grads:
            return
        norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads])
        norm = torch.linalg.vector_norm(norms, dim=0)  # (K,)
        for member, found in zip(self.members, norm.tolist(), strict=True):
            if not math.isfinite(found):
                member.fail("gradient norm", found, self.step)
        factor = (bound / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor.view(-1, *[1] * (grad.dim() - 1)))

    def _cores(self) -> dict[str, Tensor]:
        """The stacks of the adapters' cores, made from the tensors beside the model; 0 for a client without one."""
        made: list[Mapping[str, Tensor]] = []
        for member, views in zip(self.members, self.stack.views(self.stack.beside), strict=True):
            assert member.job.extra is not None
            made.append(member.job.extra.cores(views))
        found = {}
        for name in dict.fromkeys(name for own in made for name in own):
            like = next(own[name] for own in made if name in own)
            found[name] = torch.stack([own[name] if name in own else torch.zeros_like(like) for own in made])
        return found

    def _leave(self) -> None:
        """Let the clients leave that have made their steps, and those that failed."""
        done = [member.failure is not None or self.step >= member.of_steps for member in self.members]
        if not any(done):
            return
        for at, member in enumerate(self.members):
            if done[at]:
                own = {} if member.failure is not None else self.stack.own(at)
                self.outcomes[member.number] = member.fitted(own, self.step)
        staying = [at for at, left in enumerate(done) if not left]
        self.members, self.start = [self.members[at] for at in staying], [self.start[at] for at in staying]
        if staying:
            self.stack.keep(staying, self.turns)
            if self.dropout is not None:
                self.dropout.keep(staying)


def trained_together(jobs: Sequence[Job], *, drops: bool) -> list[Outcome]:
    """The results of these jobs, equal to those of ``job.alone`` but for the rounding of sums.

    Parameters
    ----------
    jobs
        Jobs of one kind, see ``kinds``.
    drops
        Whether the model draws random numbers in training.
    """
    members = [Member(number, job) for number, job in enumerate(jobs)]
    bench = jobs[0].bench
    with ExitStack() as within:
        stack = within.enter_context(stacked(bench, jobs))
        streams = [job.rng.child("dropout") for job in jobs]
        within.enter_context(streams[0].scope())
        together = Together(stack, members, OwnDropout(bench.device, streams) if drops else None)
        together.run()
    return [together.outcomes[number] for number in range(len(jobs))]


def _start(bench: Workbench, job: Job) -> Params:
    if not any(phase.penalties for phase in job.phases):
        return {}
    more = {} if job.extra is None else job.extra.tensors
    return start_of(bench, job.params, {name: tensor.to(bench.device) for name, tensor in more.items()})


def _extent(bench: Workbench, columns: Batch, rows: Tensor) -> Extent:
    """The rows that a client has in a batch, and the tokens of its longest."""
    if "input_ids" not in columns or not len(rows):
        return Extent(len(rows), 0)
    own = bench.prepare({name: column[rows] for name, column in columns.items()})
    return Extent(len(rows), own["input_ids"].shape[1])
