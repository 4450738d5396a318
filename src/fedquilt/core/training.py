"""How clients train: the settings of local training, which are the section [training] of a run file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedquilt.core.settings import Count, Part, Rate, Share, Strength, Whole


@dataclass(frozen=True)
class Training:
    """Local training on one client in one round."""

    steps: Count | None = None
    """Optimiser steps per round; set this or ``epochs``."""
    epochs: Count | None = None
    """Passes over the client's rows per round; 1 if ``steps`` is not set either."""
    batch_size: Count = 32
    """Examples in one forward pass; with ``packing``, packed rows."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser; its state is reset in every round."""
    learning_rate: Rate = 1e-3
    """Learning rate of the first round after the warm-up."""
    weight_decay: Strength = 0.0
    """Decoupled for adamw, an L2 gradient for sgd."""
    momentum: Share = 0.0
    """Momentum of sgd; adamw has its own."""
    clip_norm: Rate | None = None
    """Largest norm of the gradient of all trained tensors; not clipped if left out."""
    accumulation: Count = 1
    """Forward passes whose gradients are averaged into one optimiser step."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of the learning rate over rounds."""
    warmup_rounds: Whole = 0
    """Rounds in which the learning rate rises to its full value."""
    final_scale: Part = 0.1
    """Learning rate of the last round as a fraction of the full one, for linear and cosine."""
    proximal: Strength = 0.0
    """FedProx's mu: adds ``mu / 2`` times the squared distance of the trained and returned tensors from their start to
    the loss; 0 for none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 runs the forward pass under autocast; auto uses it on devices where it is fast."""
    gradient_checkpointing: bool = False
    """Compute the activations of each block again in the backward pass: equal gradients, less memory, more time."""
    packing: bool = False
    """Let several examples of a language model share a row of up to ``model.max_length`` tokens, with attention that
    keeps them apart. Batches and epochs are then made of such rows. The loss is still the mean over the labelled tokens
    of a step, and the weight of a client its number of examples."""

    def __post_init__(self) -> None:
        """Fill in one epoch if neither steps nor epochs are given, and refuse both."""
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps = {self.steps} and epochs = {self.epochs} are both set; keep one of them")
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "epochs", 1)


def learning_rate_at(training: Training, round: int, rounds: int) -> float:
    """The learning rate of a round, ``eta * w(t) * s(t)``.

    ``w`` rises evenly over the first ``warmup_rounds`` rounds to 1; ``s`` then goes from 1 in the first round after
    them to ``final_scale`` in the last, in a straight line (``linear``) or half a cosine (``cosine``), or stays 1
    (``constant``).
    """
    if round < training.warmup_rounds:
        return training.learning_rate * (round + 1) / training.warmup_rounds
    span = max(1, rounds - training.warmup_rounds - 1)
    progress = min(1.0, (round - training.warmup_rounds) / span)
    low = training.final_scale
    if training.schedule == "linear":
        factor = 1 + (low - 1) * progress
    elif training.schedule == "cosine":
        factor = low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2
    else:
        factor = 1.0
    return training.learning_rate * factor


def num_steps(num_rows: int, training: Training) -> int:
    """Optimiser steps that a client with ``num_rows`` rows makes in a round."""
    if training.steps is not None:
        return training.steps
    return -(-num_rows // (training.batch_size * training.accumulation)) * (training.epochs or 1)
