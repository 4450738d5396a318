"""What a sample was worth to the student that learned from it: rewards, and the labels that a filter is trained on.

All functions are pure. ``History`` is what a student keeps between two batches; it is a tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from fedquilt.core.settings import Few, Part


@dataclass(frozen=True)
class Reward:
    """How the labels of a learning filter are made from what a batch of samples did."""

    sample: Literal["reliable", "paper"] = "reliable"
    """The reward of a single sample: ``reliable`` is the teacher's mean log-probability of its own path, standardised
    over the batch; ``paper`` is the sample's margin plus its difficulty for the student, each scaled to [0, 1]."""
    sample_weight: Part = 0.5
    """Weight of the sample's reward in the label; the rest is the weight of the batch's reward."""
    window: Few = 20
    """Number of batches over which the batch reward is standardised."""


class Outcome(NamedTuple):
    """What training on a batch of samples did, each (samples,).

    Attributes
    ----------
    losses
        The student's loss on each sample after training.
    margins
        Its margin between the preferred and the other path, see ``contrast.margins``.
    student
        Its mean log-probability per token of the preferred path.
    teacher
        The teacher's mean log-probability per token of that path.
    """

    losses: Tensor
    margins: Tensor
    student: Tensor
    teacher: Tensor


class History(TypedDict):
    """The metric of the last batch, None before the first one, and the last batch rewards."""

    previous: float | None
    rewards: list[float]


def no_history() -> History:
    """The history before the first batch."""
    return History(previous=None, rewards=[])


def labels(outcome: Outcome, history: History, settings: Reward) -> tuple[Tensor, History]:
    """The label of each sample, (samples,) in (0, 1), and the history with this batch; unchanged for an empty batch."""
    if not len(outcome.losses):
        return outcome.losses.new_zeros(0), history
    metric = log_metric(outcome.losses)
    previous = history["previous"]
    batch = 0.0 if previous is None else batch_reward(previous, metric)
    rewards = [*history["rewards"], batch][-settings.window :]
    if settings.sample == "paper":
        sample = margin_reward(outcome.margins, outcome.student)
    else:
        sample = standardised(outcome.teacher.double())
    return label(sample, last_standardised(rewards), settings.sample_weight), History(previous=metric, rewards=rewards)


def log_metric(losses: Tensor) -> float:
    """``log((1/n) sum_i exp(L_i))``: the logarithm of a batch's metric, which is positive and may exceed any float.

    Paper: lada, batch-metric
    """
    return float(torch.logsumexp(losses.detach().double(), 0)) - math.log(len(losses))


def batch_reward(log_previous: float, log_current: float) -> float:
    """``(b' - b) / max(b', b)`` for the metrics b' and b of two consecutive batches, given their logarithms.

    It is positive where the metric fell, and below 1 in magnitude up to rounding.

    Paper: lada, batch-reward
    """
    gap = log_previous - log_current
    return math.copysign(-math.expm1(-abs(gap)), gap)


def margin_reward(margins: Tensor, student: Tensor) -> Tensor:
    """``minmax(m_i) + 1 - minmax(l_i)``, in [0, 2]: large for a wide margin and for a path that the student finds hard.

    ``student`` is its mean log-probability per token of the preferred path.

    Paper: lada, sample-reward
    """
    return unit_range(margins.double()) + 1 - unit_range(student.double())


def label(sample: Tensor, batch: float, sample_weight: float) -> Tensor:
    """``a sigma(r_i) + (1 - a) sigma(z)`` for the samples' rewards r_i, the batch's standardised reward z and weight a.

    Paper: lada, label
    """
    common = torch.sigmoid(torch.tensor(batch, dtype=torch.float64))
    return (sample_weight * torch.sigmoid(sample.double()) + (1 - sample_weight) * common).float()


def unit_range(values: Tensor) -> Tensor:
    """The values mapped linearly to [0, 1]; one half where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.full_like(values, 0.5)


def standardised(values: Tensor) -> Tensor:
    """The values minus their mean, divided by their standard deviation; zero where all are equal."""
    spread = values.std(unbiased=False)
    # a spread that is rounding alone would blow up to ordinary rewards
    return (values - values.mean()) / spread if spread > 1e-12 * (1 + values.abs().max()) else torch.zeros_like(values)


def last_standardised(rewards: Sequence[float]) -> float:
    """The last of these rewards, standardised by mean and deviation of all of them."""
    return float(standardised(torch.tensor(rewards, dtype=torch.float64))[-1])
