"""Local training: optimiser steps on a client's own rows, in phases with different trainable tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from fedquilt.client.agreement import disagreement
from fedquilt.client.packing import packed
from fedquilt.client.prefix import Forward, forward_of
from fedquilt.client.workbench import Batch, Workbench
from fedquilt.core.errors import DivergedError, TrainingError
from fedquilt.core.profiling import span
from fedquilt.core.rng import Rng
from fedquilt.core.training import Training, num_steps
from fedquilt.core.types import Params, Range
from fedquilt.core.worker import Extra, Fitted, Penalty, Phase

METRICS = {
    "loss": Range(0.0, 1e30),
    "accuracy": Range(0.0, 1.0),
    "steps": Range(0.0, 1e9, whole=True),
}
"""Metrics of local training and their ranges."""


def fit(
    bench: Workbench,
    columns: Batch,
    params: Mapping[str, Tensor],
    names: Collection[str],
    training: Training,
    learning_rate: float,
    rng: Rng,
    *,
    blocks: Collection[int] | None = None,
    penalties: Sequence[Penalty] = (),
) -> Fitted:
    """Train the model in a single phase, see ``alternate``.

    Parameters
    ----------
    bench, columns, params
        The workbench, the client's rows, and the tensors to start from.
    names
        Names of the tensors to train.
    training, learning_rate, rng
        How to train, the learning rate of this round, and the random stream.
    blocks, penalties
        The only transformer blocks that are part of the model, and terms that are added to the loss of each step.
    """
    phase = Phase(frozenset(names), penalties=tuple(penalties))
    return alternate(bench, columns, params, [phase], training, learning_rate, rng, blocks=blocks)


def alternate(
    bench: Workbench,
    columns: Batch,
    params: Mapping[str, Tensor],
    phases: Sequence[Phase],
    training: Training,
    learning_rate: float,
    rng: Rng,
    *,
    blocks: Collection[int] | None = None,
    extra: Extra | None = None,
) -> Fitted:
    """Train the model in phases that take turns until all steps of the round are made.

    A penalty is added once to each step, whatever the number of its forward passes, and sees all tensors that any phase
    trains. With ``training.packing`` the rows of batches and epochs are packed ones (``packing.packed``); the result
    still counts examples. Metrics: ``loss`` (mean over the labels seen, before each step, without penalties and
    agreement), ``accuracy`` (over the same labels) and ``steps``.

    Parameters
    ----------
    bench, columns, params, phases
        The workbench, the client's rows, the tensors to start from, and the phases of one cycle.
    training, learning_rate, rng
        How to train, the learning rate of this round, and the random stream.
    blocks, extra
        The only transformer blocks that are part of the model, and tensors from which the adapters' cores are made.

    Raises
    ------
    TrainingError
        if there are no rows; ``DivergedError`` if the loss, a penalty or the norm of a gradient to clip is not finite.
    """
    num_examples = len(columns["labels"])
    if num_examples == 0:
        raise TrainingError("the client has no training rows")
    bench.load(params)
    wanted = frozenset[str]().union(*(phase.names for phase in phases))
    more = {} if extra is None else extra.tensors
    beside = {**bench.opened(wanted), **{name: tensor.to(bench.device).clone() for name, tensor in more.items()}}
    now = {name: tensor for name, tensor in {**bench.parameters, **beside}.items() if name in wanted}
    if bench.device.type == "meta":  # planning: shapes without numbers
        shapes = {name: tensor.detach() for name, tensor in now.items()}
        return Fitted({**shapes, **bench.state(wanted)}, num_examples, {"steps": 0.0})
    start = start_of(bench, params, beside) if any(phase.penalties for phase in phases) else {}
    columns = packed(columns) if training.packing else columns
    num_rows = len(columns["labels"])
    own = [{name: tensor for name, tensor in now.items() if name in phase.names} for phase in phases]
    optimizers = [optimizer_of(each, training, learning_rate, phase) for each, phase in zip(own, phases, strict=True)]
    of_steps = num_steps(num_rows, training)
    drawn = batches(num_rows, training, rng.child("batches"))
    forward = forward_of(bench, phases if blocks is None and extra is None else (), num_rows, training)
    loss_sum, correct, seen, steps = 0.0, 0, 0, 0
    making = nullcontext() if extra is None else bench.making_cores(lambda: extra.cores(beside))
    with making, bench.shallow(blocks), rng.child("dropout").scope():
        for phase, trained, optimizer in cycle(zip(phases, own, optimizers, strict=True)):
            if steps == of_steps:
                break
            opened = bench.training(phase.names, beside, recompute=training.gradient_checkpointing)
            with opened, _earlier(bench, trained, phase) as earlier:
                for rows in islice(drawn, phase.steps):
                    steps += 1
                    optimizer.zero_grad()
                    step_loss, step_correct, step_labels = _backward(
                        bench, columns, rows.split(training.batch_size), phase, forward, earlier
                    )
                    if not math.isfinite(step_loss):
                        raise DivergedError(f"loss is {step_loss} at step {steps}")
                    for penalty in phase.penalties:
                        _penalise(penalty(now, start), steps)
                    _clip(trained, training.clip_norm, steps)
                    with span("optimiser"):
                        optimizer.step()
                    if bench.stepped:
                        bench.stepped(steps, of_steps)
                    loss_sum, correct, seen = loss_sum + step_loss, correct + step_correct, seen + step_labels
    fitted = {name: tensor.detach().to("cpu", copy=True) for name, tensor in now.items()} | bench.state(wanted)
    metrics = {"loss": loss_sum / max(1, seen), "accuracy": correct / max(1, seen), "steps": float(steps)}
    return Fitted(fitted, num_examples, metrics)


def start_of(bench: Workbench, params: Mapping[str, Tensor], beside: Mapping[str, Tensor]) -> Params:
    """The tensors at the start of training, as penalties see them."""
    sent = {name: tensor.detach().to(bench.device) for name, tensor in params.items()}
    return sent | {name: tensor.clone() for name, tensor in beside.items()}


def batches(num_rows: int, training: Training, rng: Rng) -> Iterator[Tensor]:
    """Yield the row numbers of each optimiser step.

    Every pass over the rows is a new permutation; its last step may have fewer rows.
    """
    generator = rng.torch()
    size = min(training.batch_size * training.accumulation, num_rows)
    per_epoch = -(-num_rows // size)
    for step in range(num_steps(num_rows, training)):
        if step % per_epoch == 0:
            order = torch.randperm(num_rows, generator=generator)
        first = (step % per_epoch) * size
        yield order[first : first + size]


Earlier = Callable[[Batch], Tensor]
"""Gives the logits of a batch under the model as it was when the turn began."""


@contextmanager
def _earlier(bench: Workbench, trained: Mapping[str, Tensor], phase: Phase) -> Iterator[Earlier | None]:
    """Keep a copy of the current model for use while these tensors are trained; None if the phase does not need it."""
    if not phase.agreement:
        yield None
        return
    yield earlier_of(bench, trained, {name: tensor.detach().clone() for name, tensor in trained.items()})


def earlier_of(bench: Workbench, trained: Mapping[str, Tensor], held: dict[str, Tensor]) -> Earlier:
    """The model with the tensors ``held``, which take the places of the trained ones for each pass."""

    def exchanged() -> None:
        for name, tensor in trained.items():
            tensor.data, held[name] = held[name], tensor.data

    def ask(batch: Batch) -> Tensor:
        exchanged()
        try:
            with bench.asked():
                return bench.forward(batch)[0]
        finally:
            exchanged()

    return ask


def _backward(
    bench: Workbench,
    columns: Batch,
    parts: Sequence[Tensor],
    phase: Phase,
    forward: Forward,
    earlier: Earlier | None,
) -> tuple[float, int, int]:
    """Backpropagate the mean loss over all parts; return the summed loss and the numbers of hits and labels.

    Parameters
    ----------
    bench, columns, parts
        The workbench, the client's rows, and the numbers of those of each forward pass.
    phase, forward, earlier
        The phase, the forward pass, and the model as it was when the turn began.
    """
    labels_in_step = sum(bench.scoring.num_labels(columns["labels"][part]) for part in parts)
    loss_sum, correct = 0.0, 0
    for part in parts:
        batch = {name: column[part] for name, column in columns.items()}
        whole, loss, hits = _losses(bench, batch, forward(batch, part), phase, earlier)
        with span("backward"):
            (whole / max(1, labels_in_step)).backward()
        loss_sum += float(loss)
        correct += hits
    return loss_sum, correct, labels_in_step


def _losses(
    bench: Workbench, batch: Batch, answered: tuple[Tensor, Tensor], phase: Phase, earlier: Earlier | None
) -> tuple[Tensor, Tensor, int]:
    """The summed loss of a batch with and without agreement, and the number of hits.

    The logits, a language model's largest tensor, are freed before the backward pass, which does not need them.

    Parameters
    ----------
    bench, batch, answered
        The workbench, the rows, and their logits and labels.
    phase, earlier
        The phase, and the model as it was when the turn began.
    """
    scoring = bench.scoring
    logits, labels = answered
    loss = scoring.loss(logits, labels).sum()
    whole = loss
    if earlier is not None:
        given, known = scoring.answers(logits, labels)
        taught, _ = scoring.answers(earlier(batch), labels)
        # the disagreement is a mean over this part's labels, but the step's loss over those of all parts
        apart = disagreement(given, taught, known, phase.temperature)
        whole = loss + phase.agreement * scoring.num_labels(labels) * apart
    return whole, loss.detach(), scoring.num_correct(logits.detach(), labels)


def _clip(trained: Mapping[str, Tensor], bound: float | None, step: int) -> None:
    """Scale the gradients of these tensors to a norm of at most ``bound``, if there is one."""
    if bound is None:
        return
    norm = float(nn.utils.clip_grad_norm_(trained.values(), bound))
    if not math.isfinite(norm):
        raise DivergedError(f"gradient norm is {norm} at step {step}")


def _penalise(value: Tensor, step: int) -> None:
    """Add the penalty's gradients to the existing ones."""
    if not math.isfinite(float(value.detach())):
        raise DivergedError(f"penalty is {float(value.detach())} at step {step}")
    if value.requires_grad:  # a penalty on tensors that are not trained is a constant
        value.backward()


def optimizer_of(
    trained: Mapping[str, Tensor], training: Training, learning_rate: float, phase: Phase, *, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of these tensors, at the rates of the phase.

    Parameters
    ----------
    trained
        The tensors by name.
    training
        The settings of local training.
    learning_rate
        The learning rate of the step, which the rates of the phase multiply.
    phase
        The tensors that learn, each with its rate.
    fused
        Step AdamW with torch's fused kernel, which rounds otherwise than the usual one.
    """
    by_rate: dict[float, list[Tensor]] = {}
    for name, tensor in trained.items():
        by_rate.setdefault(phase.rates.get(name, phase.rate), []).append(tensor)
    groups = [{"params": tensors, "lr": learning_rate * rate} for rate, tensors in by_rate.items()]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=training.momentum, weight_decay=training.weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=training.weight_decay, fused=fused or None)
