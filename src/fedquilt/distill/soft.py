"""Losses of a student that learns next-token distributions of a teacher along known answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.client.workbench import Batch
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Positive, Strength
from fedquilt.core.types import Memory, Order
from fedquilt.core.worker import Penalty, Worker
from fedquilt.distill.logits import UNKNOWN, TopK, distillation_loss
from fedquilt.distill.paths import likelihood
from fedquilt.distill.predictions import Predictions, answer_places
from fedquilt.distill.public import Drawn
from fedquilt.distill.steps import Forward, forward_of, learning_from


@dataclass(frozen=True)
class Mixture:
    """How a student learns from the predictions of a teacher."""

    answers: Strength = 0.9
    """Weight of the cross-entropy of the known answers."""
    distil: Strength = 0.1
    """Weight of the divergence from the teacher's predictions."""
    temperature: Positive = 1.0
    """Temperature of both distributions; the divergence counts by its square."""


class Shown(NamedTuple):
    """Known answers with a teacher's predictions.

    Attributes
    ----------
    columns
        The answers in the student's tokens, behind their prompts.
    predictions
        The teacher's predictions along them, in the student's tokens and positions.
    """

    columns: Batch
    predictions: Predictions


def mixed_loss(forward: Forward, shown: Shown, rows: Tensor, mixture: Mixture) -> Tensor:
    """``a CE(answers) + d T^2 KL(teacher || student)`` of these answers, a scalar.

    CE is the mean over the answers of the cross-entropy per token, KL the mean over positions at which the teacher
    predicts a token that the student has; 0 where there is none.

    Paper: fedmkt, objective
    """
    logits, labels = forward({name: column[rows] for name, column in shown.columns.items()})
    loss = -mixture.answers * likelihood(logits, labels).mean.mean()
    theirs = shown.predictions
    row, column, place = answer_places(labels, theirs["tokens"].shape[1])
    tokens, log_probs = (theirs[name][rows[row], place] for name in ("tokens", "log_probs"))
    known = (tokens != UNKNOWN).any(-1)
    own = logits[row[known], column[known]] / mixture.temperature
    apart = distillation_loss(own, TopK(tokens[known].long(), log_probs[known]))
    return loss + mixture.distil * mixture.temperature**2 * apart


class Taught(NamedTuple):
    """What a student learns of one teacher: predictions in its own tokens, and of which answers, (answers,) of bool."""

    predictions: Predictions
    chosen: Tensor

    @property
    def share(self) -> float:
        """The share of the answers that is learned."""
        return float(self.chosen.float().mean()) if len(self.chosen) else 0.0


def learner(
    student: Worker,
    order: Order,
    memory: Memory,
    public: Drawn,
    teachers: Sequence[Taught],
    mixture: Mixture,
    rng: Rng,
    *,
    batch_size: int = 8,
) -> Worker:
    """The student that learns from predictions along the drawn answers too; each teacher counts the same.

    Parameters
    ----------
    student, order, memory
        The student, and what stands for its model.
    public, teachers
        The questions with answers, and what each teacher predicts along them.
    mixture, rng
        How to learn, and the random stream of the order of answers.
    batch_size
        Number of answers of each teacher in an optimiser step.
    """
    some = [one for one in teachers if one.chosen.any()]
    if not some:
        return student
    forward: Forward = student.lending(order, memory, forward_of)
    columns: Batch = student.lending(order, memory, lambda lent: lent.columns(public.questions, public.answers))
    terms = [
        distilling(
            forward,
            Shown(columns, one.predictions),
            one.chosen.nonzero()[:, 0],
            mixture,
            rng.child("teacher", number),
            batch_size=batch_size,
        )
        for number, one in enumerate(some)
    ]

    def beside(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([term(trained, start) for term in terms]).mean()

    return student.penalised(beside, runs_model=True)


def distilling(
    forward: Forward, shown: Shown, chosen: Tensor, mixture: Mixture, rng: Rng, *, batch_size: int = 8
) -> Penalty:
    """The loss on a batch of the chosen answers as a term of every optimiser step, see ``steps.learning_from``.

    Parameters
    ----------
    forward
        The student's forward pass, ``Workbench.forward``.
    shown, chosen
        The answers with predictions, and the positions of those to learn from.
    mixture, rng
        How to learn, and the random stream of the order.
    batch_size
        Number of answers in a step.
    """
    return learning_from(lambda rows: mixed_loss(forward, shown, rows, mixture), chosen, rng, batch_size)
