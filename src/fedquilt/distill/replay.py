"""What a filter that learns remembers: the scale of contexts, the last choice's candidates, and learned samples."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from fedquilt.core.errors import TrainingError
from fedquilt.core.types import Params

CLIP = 5.0
"""Largest magnitude of a standardised context."""


class Memory(TypedDict):
    """The part of the state that all filters that learn have in common.

    Attributes
    ----------
    mean, std
        Mean and standard deviation of the first contexts, (features,); empty before the first choice.
    choices
        Number of choices so far.
    last
        The candidates of the last choice: their standardised ``contexts`` (samples, features), and of a filter with
        networks the second one's ``features`` (samples, hidden) and the first one's prediction ``predicted``
        (samples,), both as they were when the choice was made.
    replay
        Samples that were learned from, oldest first: the same columns, their ``labels`` (samples,) and the
        ``versions`` (samples,) of the student that they were learned by.
    """

    mean: Tensor
    std: Tensor
    choices: int
    last: Params
    replay: Params


def nothing(inputs: int, hidden: int) -> Memory:
    """The memory before the first choice, for contexts of ``inputs`` and second networks of ``hidden`` features."""
    columns = {"contexts": torch.zeros(0, inputs), "features": torch.zeros(0, hidden), "predicted": torch.zeros(0)}
    learned = {"labels": torch.zeros(0), "versions": torch.zeros(0, dtype=torch.long)}
    return Memory(mean=torch.zeros(0), std=torch.zeros(0), choices=0, last=columns, replay={**columns, **learned})


def scales(memory: Memory, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the first contexts, which these are if there were none before.

    The deviation of a feature that has the same value in all of them counts as 1.
    """
    if memory["choices"]:
        return memory["mean"], memory["std"]
    rows = contexts.detach().float().cpu()
    std = rows.std(0, unbiased=False)
    return rows.mean(0), torch.where(std > 1e-6, std, torch.ones_like(std))


def standard(memory: Memory, contexts: Tensor) -> Tensor:
    """The contexts minus the first ones' mean, divided by their deviation, clipped to ``[-CLIP, CLIP]``.

    Paper: lada, context-scale
    """
    mean, std = scales(memory, contexts)
    return ((contexts.detach().float().cpu() - mean) / std).clamp(-CLIP, CLIP)


def noted(memory: Memory, contexts: Tensor, features: Tensor, predicted: Tensor) -> Memory:
    """The memory with these contexts, as they were given, as the candidates of the last choice."""
    mean, std = scales(memory, contexts)
    last = {
        "contexts": standard(memory, contexts),
        "features": features.detach(),
        "predicted": predicted.detach(),
    }
    return Memory(mean=mean, std=std, choices=memory["choices"] + 1, last=last, replay=memory["replay"])


def predictions(memory: Memory) -> Tensor:
    """The labels that were predicted of the candidates of the last choice, (samples,)."""
    predicted: Tensor = memory["last"]["predicted"]
    return predicted


def pushed(memory: Memory, positions: Tensor, labels: Tensor, version: int, *, most: int, oldest: int | None) -> Params:
    """The replay with these candidates of the last choice behind the earlier samples.

    Parameters
    ----------
    memory
        The memory, with the candidates of the last choice.
    positions, labels
        The candidates that were learned from, and their labels, both (samples,).
    version
        The student's version.
    most
        The largest number of samples that are kept: the last ones.
    oldest
        The number of versions after which a sample is forgotten; None for never.

    Raises
    ------
    TrainingError
        if a label is not finite: it would stay, and spoil every later choice.
    """
    if not labels.isfinite().all():
        raise TrainingError("a sample's label is not finite; the losses that it is made of are not, either")
    positions = positions.cpu()
    new = {name: column[positions] for name, column in memory["last"].items()}
    new["labels"] = labels.detach().float().cpu()
    new["versions"] = torch.full((len(positions),), version, dtype=torch.long)
    before = memory["replay"]
    recent = before["versions"] >= version - (oldest if oldest is not None else version)
    return {name: torch.cat([column[recent], new[name]])[-most:] for name, column in before.items()}
