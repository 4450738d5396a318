"""An optimiser whose state is kept from one message to the next, as plain tensors by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedquilt.core.errors import TrainingError
from fedquilt.core.training import Training

Moments = dict[str, dict[str, Tensor]]
"""What an optimiser remembers of each tensor, by the tensor's name."""


class Optimiser:
    """AdamW or SGD over named tensors, that goes on where it stopped.

    Parameters
    ----------
    tensors
        The tensors to train, by name.
    training, learning_rate
        How to train, and the current learning rate.
    moments
        What was kept of the last steps; empty for the first.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], training: Training, learning_rate: float, moments: Moments
    ) -> None:
        self.tensors, self.clip = dict(tensors), training.clip_norm
        own = list(self.tensors.values())
        decay = training.weight_decay
        own = own or [torch.zeros(1)]  # an optimiser needs a tensor; without a gradient this one does not move
        self._inner: torch.optim.Optimizer = (
            torch.optim.SGD(own, lr=learning_rate, momentum=training.momentum, weight_decay=decay)
            if training.optimizer == "sgd"
            else torch.optim.AdamW(own, lr=learning_rate, weight_decay=decay)
        )
        for name, kept in moments.items():
            if name in self.tensors:
                tensor = self.tensors[name]
                self._inner.state[tensor] = {
                    key: value.clone() if key == "step" else value.to(tensor.device, copy=True)
                    for key, value in kept.items()
                }

    def step(self, loss: Tensor) -> float:
        """Descend the loss by one step; returns its value.

        Raises
        ------
        TrainingError
            if the loss or the norm of a gradient to clip is not finite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"loss is {value}")
        self._inner.zero_grad()
        loss.backward()
        self.step_along()
        return value

    def step_along(self) -> None:
        """One step along the gradients that are there, which are then cleared.

        Raises
        ------
        TrainingError
            if the norm of a gradient to clip is not finite.
        """
        if self.clip is not None:
            norm = float(nn.utils.clip_grad_norm_(self.tensors.values(), self.clip))
            if not math.isfinite(norm):
                raise TrainingError(f"gradient norm is {norm}")
        self._inner.step()
        self._inner.zero_grad()

    def moments(self) -> Moments:
        """What to keep for the next steps, on the CPU."""
        kept: Moments = {}
        for name, tensor in self.tensors.items():
            state = self._inner.state.get(tensor, {})
            found = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            if found:
                kept[name] = {key: value.detach().to("cpu", copy=True) for key, value in found.items()}
        return kept
