"""What a task's labels mean: its loss and its accuracy.

Classification has one label a row. A causal language model has one label a token, shifted by one, and ``IGNORED`` where
a token is not to be learned (the prompt, the padding).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
TASKS = ("image-classification", "sequence-classification", "causal-lm")


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log p(y | x)`` of every row, in float32; a language model's row is the sum over its labelled tokens.

    ``logits`` is ``(rows, classes)`` with ``labels`` ``(rows,)``, or ``(rows, tokens, vocabulary)`` with ``labels``
    ``(rows, tokens)``.
    """
    logits, labels = _aligned(logits, labels)
    losses = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view(labels.shape).flatten(1).sum(1) if labels.dim() > 1 else losses


def label_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """The raw logit of every row's label, ``(rows,)``; a language model's row is the sum over its labelled tokens."""
    logits, labels = _aligned(logits, labels)
    picked = logits.float().gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    picked = torch.where(labels == IGNORED, torch.zeros_like(picked), picked)
    return picked.flatten(1).sum(1) if labels.dim() > 1 else picked


def answers(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of what is to be predicted, ``(..., classes)``, and which of them have a label that counts, ``(...)``.

    A language model's last logits, which are about no token of the row, are not among them.
    """
    logits, labels = _aligned(logits, labels)
    return logits, labels != IGNORED


def num_labels(labels: Tensor) -> int:
    """How many labels count: rows of a classification batch, labelled tokens of a language model's."""
    return int((labels[..., 1:] != IGNORED).sum()) if labels.dim() > 1 else labels.numel()


def num_correct(logits: Tensor, labels: Tensor) -> int:
    """How many of the labels that count are the arg-max of their logits."""
    logits, labels = _aligned(logits, labels)
    return int((logits.argmax(-1) == labels).sum())  # IGNORED is negative, so no arg-max is equal to it


def _aligned(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    # a language model's logits at token t are about token t + 1
    return (logits[:, :-1], labels[:, 1:]) if labels.dim() > 1 else (logits, labels)
