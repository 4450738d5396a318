"""Losses of a student that learns from whole paths: contrastive, supervised, and sequence-level distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.client.workbench import Batch
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Positive, Strength
from fedquilt.core.worker import Penalty
from fedquilt.distill.paths import Likelihood, likelihood
from fedquilt.distill.steps import Forward, learning_from


@dataclass(frozen=True)
class Contrast:
    """How a student learns from the paths of a teacher."""

    weight: Strength = 0.1
    """Weight of the contrastive loss beside the supervised loss on the teacher's path."""
    beta: Positive = 2.0
    """Factor of the margin between the two paths."""
    reference: Literal["peer", "self"] = "peer"
    """The model that likelihoods are compared with: ``peer`` is the teacher, ``self`` the student as it was when the
    round began."""
    per_token: bool = True
    """Divide log-probabilities by the path's number of tokens."""


class Pair(NamedTuple):
    """Likelihoods of the two paths of each sample under one model: the one to learn, and the one to move away from."""

    preferred: Likelihood
    other: Likelihood

    def at(self, positions: Tensor) -> Pair:
        """Those of these samples."""
        return Pair(self.preferred.at(positions), self.other.at(positions))


class Samples(NamedTuple):
    """Samples to learn from.

    Attributes
    ----------
    preferred, other
        Columns of the student's tokens of both paths, as ``paths.path_columns`` makes them.
    reference
        The likelihoods of both paths under the reference; see ``reference_of``.
    weights
        Weight of each sample, (samples,).
    """

    preferred: Batch
    other: Batch
    reference: Pair
    weights: Tensor


class PairLoss(NamedTuple):
    """The loss of some samples, a scalar with gradients, and without gradients each one's margin and likelihood.

    ``losses`` are the contrastive losses, ``margins`` the margins, and ``student`` the student's mean log-probability
    per token of the preferred path, all (samples,), on the CPU.
    """

    loss: Tensor
    losses: Tensor
    margins: Tensor
    student: Tensor


def reference_of(settings: Contrast, teacher: Pair, start: Pair) -> Pair:
    """The likelihoods under the reference: the teacher's, or the student's when the round began."""
    return teacher if settings.reference == "peer" else start


def margins(student: Pair, reference: Pair, settings: Contrast) -> Tensor:
    """``m = beta {[l_S(y_T) - l_R(y_T)] / n_T - [l_S(y_S) - l_R(y_S)] / n_S}``, (samples,).

    y_T is the preferred path and y_S the other one; n counts the student's tokens, also where the reference has other
    ones: l_S - l_R is the ratio of two probabilities of one text, whichever tokens it is made of.

    Paper: lada, margin
    """
    gains = []
    for own, theirs in zip(student, reference, strict=True):
        ratio = own.total - theirs.total.to(own.total)
        gains.append(ratio / own.tokens.clamp(min=1) if settings.per_token else ratio)
    return settings.beta * (gains[0] - gains[1])


def contrastive_losses(margin: Tensor) -> Tensor:
    """``L = -log sigma(m)`` of each sample, (samples,).

    Paper: lada, contrast
    """
    return functional.softplus(-margin)


def path_loss(student: Tensor, contrastive: Tensor, weights: Tensor, contrast: float) -> Tensor:
    """``sum_i w_i (-l_i + lambda L_i) / sum_i w_i`` over the samples, a scalar; 0 if all weights are 0.

    ``student`` is the student's mean log-probability per token l_i of the preferred path, ``contrastive`` the loss
    L_i, and ``contrast`` its weight lambda; with 0 this is supervised fine-tuning on rationales.

    Paper: lada, objective
    """
    losses = -student if contrast == 0 else -student + contrast * contrastive
    weights = weights.to(losses)
    total = weights.sum()
    return (weights * losses).sum() / total if float(total) > 0 else losses.sum() * 0


def rationale_and_label_loss(rationale: Likelihood, answer: Likelihood, rationale_weight: float) -> Tensor:
    """``a CE(rationale) + (1 - a) CE(answer)``, each a mean over the samples of the cross-entropy per token.

    Paper: step-by-step, objective; fedcot, objective
    """
    return -(rationale_weight * rationale.mean.mean() + (1 - rationale_weight) * answer.mean.mean())


def sequence_loss(student: Likelihood, teacher: Tensor, questions: Tensor) -> Tensor:
    """``-sum_y q(y) l_S(y)``, a mean over the questions, with q the teacher's probabilities of a question's paths.

    They are normalised over the paths that are given, so that a question with a single path counts it once.
    ``teacher`` are its joint log-probabilities, (paths,), and ``questions`` the number of each path's question.

    Paper: sequence-kd, objective
    """
    _, own = questions.to(student.total.device).unique(return_inverse=True)
    count = int(own.max()) + 1
    teacher = teacher.to(student.total)
    most = torch.full((count,), -torch.inf).to(teacher).scatter_reduce(0, own, teacher, "amax")
    odds = (teacher - most[own]).exp()
    shares = odds / torch.zeros(count).to(odds).index_add(0, own, odds)[own]
    return -(shares * student.total).sum() / count


def pair_loss(forward: Forward, samples: Samples, positions: Tensor, settings: Contrast) -> PairLoss:
    """The loss of these samples under the student, whose logits ``forward`` gives.

    Two equal paths have a margin without gradient: of such a sample only the supervised loss counts. With a weight of 0
    the other path is not read, and losses and margins are those of a margin of 0.
    """
    own = likelihood(*forward(_rows(samples.preferred, positions)))
    student = own.mean
    if settings.weight == 0:
        margin = torch.zeros_like(student)
    else:
        other = likelihood(*forward(_rows(samples.other, positions)))
        margin = margins(Pair(own, other), samples.reference.at(positions), settings)
    contrastive = contrastive_losses(margin)
    loss = path_loss(student, contrastive, samples.weights[positions].to(student.device), settings.weight)
    return PairLoss(loss, contrastive.detach().cpu(), margin.detach().cpu(), student.detach().cpu())


def transfer(
    forward: Forward,
    samples: Samples,
    chosen: Tensor,
    settings: Contrast,
    rng: Rng,
    *,
    batch_size: int = 8,
) -> Penalty:
    """The loss on a batch of the chosen samples as a term of every optimiser step, see ``steps.learning_from``.

    Parameters
    ----------
    forward
        The student's forward pass, ``Workbench.forward``.
    samples, chosen
        The samples, and the positions of those to learn from.
    settings, rng
        How to learn, and the random stream of the order.
    batch_size
        Number of samples in a step.
    """
    return learning_from(lambda rows: pair_loss(forward, samples, rows, settings).loss, chosen, rng, batch_size)


def _rows(columns: Batch, positions: Tensor) -> Batch:
    return {name: column[positions] for name, column in columns.items()}
