"""What a student does with the paths of a teacher: it chooses some, learns from them, and rates the choice afterwards.

Clients and the server are students alike: of one teacher, or of several. A student is a ``core.worker.Worker``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from fedquilt.client.texts import Lent
from fedquilt.core.rng import Rng
from fedquilt.core.types import Memory, Order, Tree
from fedquilt.core.worker import Worker
from fedquilt.distill.context import contexts
from fedquilt.distill.contrast import Contrast, Pair, Samples, pair_loss, reference_of, transfer
from fedquilt.distill.controls import only_right
from fedquilt.distill.paths import Likelihood, likelihoods, readings
from fedquilt.distill.registry import filter_of
from fedquilt.distill.reward import History, Outcome, Reward, labels, no_history
from fedquilt.distill.selection import Candidates, Filter, FilterSettings
from fedquilt.distill.steps import Forward, forward_of
from fedquilt.distill.told import about_choice, about_prediction


@dataclass(frozen=True)
class Teaching:
    """How students choose and learn.

    Attributes
    ----------
    filter, verified
        How samples are chosen, and whether never one whose path ends in a wrong answer.
    contrast, weight
        The loss on a chosen sample, and its weight beside the loss on the student's own rows.
    reward
        How the filter's labels are made.
    batch_size
        Number of samples of each teacher in an optimiser step.
    """

    filter: FilterSettings
    contrast: Contrast
    reward: Reward
    verified: bool = False
    weight: float = 1.0
    batch_size: int = 8

    @property
    def chooser(self) -> Filter:
        """The filter."""
        chooser = filter_of(self.filter)
        return only_right(chooser) if self.verified else chooser

    @property
    def rows(self) -> int:
        """Rows that a teacher's samples add to an optimiser step: its paths and, to contrast them, the student's."""
        return 0 if self.weight == 0 else self.batch_size * (1 if self.contrast.weight == 0 else 2)


class Lesson(NamedTuple):
    """Samples that a teacher offers.

    Attributes
    ----------
    questions, taught, own
        The questions, and of each the teacher's path and the student's.
    teacher
        The likelihoods of the teacher's and of the student's paths under the teacher.
    right
        Whether the teacher's path ends in the right answer, (samples,); None where that is not known.
    mine
        The likelihoods of the student's own paths under the student before it learns; None where they are to be found.
    """

    questions: Sequence[str]
    taught: Sequence[str]
    own: Sequence[str]
    teacher: Pair
    right: Tensor | None = None
    mine: Likelihood | None = None


class PupilState(TypedDict):
    """What a student keeps of one teacher, a tree that never leaves it.

    Attributes
    ----------
    filter
        The filter's state; None before the first lesson.
    history
        The metric of the last batch and the last rewards.
    version
        Number of lessons so far.
    """

    filter: Tree
    history: History
    version: int


class Choice(NamedTuple):
    """What a student takes of a lesson: its samples, the positions of those chosen, and the student's new state."""

    samples: Samples
    candidates: Candidates
    positions: Tensor
    state: PupilState


class Rated(NamedTuple):
    """What a student keeps of a teacher after a lesson, and what it tells about its choice, see ``told``."""

    state: PupilState
    told: dict[str, float]


def new_pupil() -> PupilState:
    """What a student keeps of a teacher before the first lesson."""
    return PupilState(filter=None, history=no_history(), version=0)


def chosen(
    student: Worker, order: Order, memory: Memory, lesson: Lesson, state: PupilState, teaching: Teaching, rng: Rng
) -> Choice:
    """What the student takes of a lesson, by its model before it learns.

    Parameters
    ----------
    student, order, memory
        The student, and what stands for its model.
    lesson, state
        The samples, and what the student keeps of this teacher.
    teaching, rng
        How to choose, and the random stream of the filter's draws.
    """

    def look(lent: Lent) -> tuple[Samples, Candidates]:
        taught, own = (lent.columns(lesson.questions, paths) for paths in (lesson.taught, lesson.own))
        reading, mine = readings(lent.bench, taught, lent.batch_size), lesson.mine
        if mine is None:
            mine = likelihoods(lent.bench, own, lent.batch_size)
        same = torch.tensor([left == right for left, right in zip(lesson.taught, lesson.own, strict=True)])
        reference = reference_of(teaching.contrast, lesson.teacher, Pair(reading.likelihood, mine))
        samples = Samples(taught, own, reference, torch.ones(len(same)))
        known = contexts(reading, mine, lesson.teacher, same)
        sure, hard = lesson.teacher.preferred.mean, reading.likelihood.mean
        return samples, Candidates(known, sure, hard, lesson.right)

    samples, candidates = student.lending(order, memory, look)
    own, chooser = state["filter"], teaching.chooser
    if own is None:
        own = chooser.init(candidates.contexts.shape[1], rng.child("start"))
    positions, own = chooser.choose(own, candidates, rng.child("choice"))
    return Choice(samples, candidates, positions, PupilState(**{**state, "filter": own}))


def pupil_of(
    student: Worker, order: Order, memory: Memory, choices: Sequence[Choice], teaching: Teaching, rng: Rng
) -> Worker:
    """The student that learns from what it chose beside its own rows; each teacher's samples count the same.

    Parameters
    ----------
    student, order, memory
        The student, and what stands for its model.
    choices
        What it chose, of each teacher.
    teaching, rng
        How to learn, and the random stream of the order of samples.
    """
    some = [choice for choice in choices if len(choice.positions)]
    if not some or teaching.weight == 0:
        return student
    forward: Forward = student.lending(order, memory, forward_of)
    terms = [
        transfer(
            forward,
            choice.samples,
            choice.positions,
            teaching.contrast,
            rng.child("teacher", number),
            batch_size=teaching.batch_size,
        )
        for number, choice in enumerate(some)
    ]

    def taught(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
        return teaching.weight * torch.stack([term(trained, start) for term in terms]).mean()

    return student.penalised(taught, runs_model=True)


def rated(student: Worker, order: Order, memory: Memory, choice: Choice, teaching: Teaching) -> Rated:
    """What the student keeps of a teacher once it has learned: the filter learns what its choice was worth.

    Parameters
    ----------
    student, order, memory
        The student, and what stands for its model after training.
    choice, teaching
        What it chose of this teacher, and how it learned.
    """
    positions, state = choice.positions, choice.state

    def look(lent: Lent) -> Outcome:
        with torch.no_grad():
            found = [
                pair_loss(lent.bench.forward, choice.samples, rows, teaching.contrast)
                for rows in positions.split(lent.batch_size)
            ]
        losses, margins, student = (
            torch.cat(parts) for parts in zip(*((one.losses, one.margins, one.student) for one in found), strict=True)
        )
        return Outcome(losses, margins, student, choice.candidates.teacher[positions])

    version, chooser = state["version"] + 1, teaching.chooser
    told = about_choice(positions, len(choice.samples.weights), choice.candidates.right)
    if not len(positions):
        return Rated(PupilState(**{**state, "version": version}), told)
    worth, history = labels(student.lending(order, memory, look), state["history"], teaching.reward)
    if chooser.predicted is not None:
        told |= about_prediction(chooser.predicted(state["filter"])[positions], worth)
    own = chooser.learn(state["filter"], positions, worth, version)
    return Rated(PupilState(filter=own, history=history, version=version), told)
