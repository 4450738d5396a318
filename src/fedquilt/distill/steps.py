"""Samples beside a student's own rows: a term of its loss, a batch of them in every optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fedquilt.client.texts import Lent
from fedquilt.client.workbench import Batch
from fedquilt.core.rng import Rng
from fedquilt.core.worker import Penalty

Forward = Callable[[Batch], tuple[Tensor, Tensor]]
"""Gives logits and labels of a batch, as ``Workbench.forward`` does."""


def forward_of(lent: Lent) -> Forward:
    """The forward pass of a lent model, which later reads the tensors that are loaded then."""
    return lent.bench.forward


def learning_from(loss: Callable[[Tensor], Tensor], chosen: Tensor, rng: Rng, batch_size: int) -> Penalty:
    """A term of the loss that adds a batch of the chosen samples to every optimiser step of local training.

    The client's own rows are the other term, so that no step lets go of its domain. Without chosen samples the term is
    0. ``loss(positions)`` is that of a batch.
    """
    drawn = batches_of(chosen, rng.child("samples"), batch_size)

    def term(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
        return loss(next(drawn)) if len(chosen) else torch.zeros(())

    return term


def batches_of(chosen: Tensor, rng: Rng, batch_size: int) -> Iterator[Tensor]:
    """Batches of these positions without end: drawn without replacement, and anew once all were seen."""
    generator = rng.torch()
    while True:
        yield from chosen[torch.randperm(len(chosen), generator=generator)].split(batch_size)
