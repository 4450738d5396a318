"""Scores of a joint prediction: of all classes, of those that the aligned rows had, and of those that they had not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.vertical.stacking import Trial, recalls


def prediction_scores(logits: Tensor, labels: Tensor, seen: Tensor) -> dict[str, float]:
    """Accuracy and loss, the recall of the worst class, and those of seen and unseen classes with their harmonic mean.

    Parameters
    ----------
    logits
        Of each row and class, (n, C); a class that cannot be predicted has -inf.
    labels
        Of each row, (n,).
    seen
        Whether aligned rows had each class, (C,), boolean. The scores of unseen classes are left out without any.
    """
    if len(labels) == 0:
        return {}
    right = (logits.argmax(1) == labels).float()
    each = [float(right[labels == number].mean()) for number in labels.unique().tolist()]
    finite = logits.clamp_min(-1e4)  # the loss of a class that cannot be predicted is large, and finite
    scores = {
        "accuracy": float(right.mean()),
        "loss": float(functional.cross_entropy(finite, labels)),
        "worst_class": min(each),
    }
    if bool((~seen[labels]).any()):
        found = recalls(Trial(logits, labels, seen), 0.0)
        scores |= {"seen": found.seen, "unseen": found.unseen, "harmonic": found.harmonic}
    return scores


def mean_by_class(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of values (n, K) over the rows of each class, (C, K); 0 for a class without rows."""
    members = functional.one_hot(labels, classes).to(values.dtype)
    return members.T @ values / members.sum(0).clamp_min(1).unsqueeze(1)


def known_by_any(knows: Tensor) -> Tensor:
    """0 for a class that some party has learned, and -inf for others, (C,)."""
    return torch.where(knows.any(0), 0.0, float("-inf"))
