"""Rationales with labels that a teacher has written, and the loss of a student on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.client.texts import Lent
from fedquilt.client.workbench import Batch
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import IGNORED
from fedquilt.core.types import Memory, Order
from fedquilt.core.worker import Worker
from fedquilt.distill.contrast import rationale_and_label_loss
from fedquilt.distill.paths import likelihood
from fedquilt.distill.predictions import tokenized
from fedquilt.distill.steps import Forward, forward_of, learning_from


class Rationales(NamedTuple):
    """What a teacher has written.

    Attributes
    ----------
    questions, paths
        The questions, and of each a rationale with the label at its end.
    starts
        The place in each path, in characters, at which its label begins.
    """

    questions: Sequence[str]
    paths: Sequence[str]
    starts: Sequence[int]


def labelled(lent: Lent, written: Rationales) -> tuple[Batch, Tensor]:
    """Columns of the paths, and whether each of their tokens is the label's, (paths, tokens).

    The end token is the label's. A token that begins before the label and reaches into it is the rationale's.
    """
    columns = lent.columns(written.questions, written.paths)
    own = torch.zeros_like(columns["labels"], dtype=torch.bool)
    cut = tokenized(lent, written.questions, written.paths)
    for row, (places, start) in enumerate(zip(cut.places, written.starts, strict=True)):
        here = (columns["labels"][row] != IGNORED).nonzero()[:, 0]
        own[row, here] = torch.tensor([place >= start for place in places], dtype=torch.bool)
    return columns, own


def rationale_loss_of(forward: Forward, columns: Batch, labels: Tensor, rows: Tensor, rationale: float) -> Tensor:
    """``a CE(rationale) + (1 - a) CE(label)`` of these paths, a scalar, see ``contrast.rationale_and_label_loss``.

    Parameters
    ----------
    forward, columns, labels
        The student's forward pass, and what ``labelled`` gives.
    rows
        The positions of the paths.
    rationale
        The weight a.
    """
    logits, wanted = forward({name: column[rows] for name, column in columns.items()})
    of_label = labels[rows][:, : wanted.shape[1]].to(wanted.device)
    first, last = (likelihood(logits, wanted.masked_fill(hidden, IGNORED)) for hidden in (of_label, ~of_label))
    return rationale_and_label_loss(first, last, rationale)


def instructed(
    student: Worker,
    order: Order,
    memory: Memory,
    written: Rationales,
    chosen: Tensor,
    *,
    rationale: float,
    weight: float,
    rng: Rng,
    batch_size: int,
) -> Worker:
    """The student that learns from a teacher's rationales and labels beside its own rows.

    Parameters
    ----------
    student, order, memory
        The student, and what stands for its model.
    written, chosen
        What the teacher wrote, and the positions of the paths to learn from.
    rationale, weight
        The weight of rationales against labels, and that of both beside the loss on own rows.
    rng, batch_size
        The random stream of the order of paths, and their number in an optimiser step.
    """
    if not len(chosen) or weight == 0:
        return student
    forward: Forward = student.lending(order, memory, forward_of)
    columns, labels = student.lending(order, memory, lambda lent: labelled(lent, written))

    def loss(rows: Tensor) -> Tensor:
        return weight * rationale_loss_of(forward, columns, labels, rows, rationale)

    return student.penalised(learning_from(loss, chosen, rng, batch_size), runs_model=True)
