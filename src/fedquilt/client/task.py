"""Loss and accuracy of each task.

Classification has one label per row. A language model has one label per token, with ``IGNORED`` for tokens that are not
to be learned (the prompt and padding).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.core.tasks import IGNORED, TASKS


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log p(y | x)`` of every row, ``(rows,)`` in float32; for labelled tokens their sum.

    ``logits`` is ``(rows, classes)`` with ``labels`` ``(rows,)``, or ``(rows, tokens, classes)`` with ``labels``
    ``(rows, tokens)``, each beside the logits that predict it.
    """
    losses = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view(labels.shape).flatten(1).sum(1) if labels.dim() > 1 else losses


@dataclass(frozen=True)
class Scoring:
    """Cross-entropy and arg-max accuracy of labels.

    ``logits`` is ``(rows, classes)`` with ``labels`` ``(rows,)``, or ``(rows, tokens, vocabulary)`` with ``labels``
    ``(rows, tokens)``. The logits at token t predict the label of token t + ``shift``.
    """

    shift: int = 0

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss ``-log p(y | x)`` of every row, ``(rows,)`` in float32; for labelled tokens their sum."""
        return negative_log_likelihood(*self._aligned(logits, labels))

    def label_logit(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The logit of every row's label, ``(rows,)``; for labelled tokens the sum over those not ignored."""
        logits, labels = self._aligned(logits, labels)
        picked = logits.float().gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        picked = torch.where(labels == IGNORED, torch.zeros_like(picked), picked)
        return picked.flatten(1).sum(1) if labels.dim() > 1 else picked

    def answers(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits ``(..., classes)`` of all predictions, and whether each has a label that counts, ``(...)``.

        A language model's last logits, which predict no token of the row, are left out.
        """
        logits, labels = self._aligned(logits, labels)
        return logits, labels != IGNORED

    def labelled(self, labels: Tensor) -> Tensor:
        """The number of labels of every row that are not ignored, int64 ``(rows,)``."""
        return (labels[:, self.shift :] if self.shift else labels).ne(IGNORED).reshape(len(labels), -1).sum(1)

    def num_labels(self, labels: Tensor) -> int:
        """The number of labels that are not ignored."""
        return int(self.labelled(labels).sum())

    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The number of labels of every row that are the arg-max of their logits, int64 ``(rows,)``."""
        logits, labels = self._aligned(logits, labels)
        right = logits.argmax(-1) == labels  # IGNORED is negative, so no arg-max is equal to it
        return right.reshape(len(labels), -1).sum(1)

    def num_correct(self, logits: Tensor, labels: Tensor) -> int:
        """The number of labels that are the arg-max of their logits."""
        return int(self.correct(logits, labels).sum())

    def _aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return (logits[:, : -self.shift], labels[:, self.shift :]) if self.shift else (logits, labels)


SCORINGS: Mapping[str, Scoring] = {
    "class": Scoring(),
    "completion": Scoring(shift=1),
}
"""The loss and the accuracy of each kind of label (``core.tasks.Task.labels``)."""


def scoring_of(task: str) -> Scoring:
    """The loss and the accuracy of the task of this name."""
    return SCORINGS[TASKS[task].labels]
