"""The numbers about a choice of samples that a student tells: of the whole choice, never of one sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedquilt.core.types import Range

RANGES: Mapping[str, Range] = {
    "taken": Range(0.0, 1.0),
    "taken_right": Range(0.0, 1.0),
    "label_error": Range(0.0, 1.0),
    "label_correlation": Range(-1.0, 1.0),
}
"""Every number by its name, with its range: for ``Exchange.metrics``."""


def about_choice(positions: Tensor, offered: int, right: Tensor | None) -> dict[str, float]:
    """``taken``, the share of the offered samples that were chosen, and ``taken_right``, the share of right paths.

    ``right`` says of every offered path whether it is right, None where that is not known. The share of right paths is
    among the chosen ones, and left out where none was chosen.
    """
    told = {"taken": len(positions) / max(1, offered)}
    if right is not None and len(positions):
        told["taken_right"] = float(right.cpu()[positions].double().mean())
    return told


def about_prediction(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """How well a filter predicted the labels of what it chose, both (samples,).

    ``label_error`` is the root of the mean squared difference; a prediction outside [0, 1], where no label is, counts
    as the nearest end. ``label_correlation`` is left out where predictions or labels are all equal.
    """
    if not len(labels):
        return {}
    first, second = predicted.detach().double().cpu().clamp(0, 1), labels.detach().double().cpu()
    told = {"label_error": float((first - second).square().mean().sqrt())}
    apart = [values - values.mean() for values in (first, second)]
    spread = torch.stack([own.square().sum().sqrt() for own in apart])
    if spread.min() > 1e-9:
        told["label_correlation"] = float((apart[0] @ apart[1] / spread.prod()).clamp(-1, 1))
    return told
