"""Server optimisers: one step of FedAvgM, FedAdam or FedYogi along a pseudo-gradient.

A step maps the server's tensors, those that an aggregator proposes, and the optimiser's state to new tensors and a new
state. The pseudo-gradient is the proposal minus the server's tensors. A tensor that is the same object in the proposal
was sent by nobody: it is not changed, and neither are its moments.

The optimiser's state are its moments, none at first; they are finite, and float32 or wider. On LoRA factors a step
depends on how each product is split into factors; methods that average products should apply it to the products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypedDict

import torch
from torch import Tensor

from fedquilt.core.params import moved, wide
from fedquilt.core.types import Params


class Moments(TypedDict):
    """The optimiser's state: first and second moments, by name of the tensor."""

    momentum: Params
    variance: Params


_Update = Callable[..., tuple[Tensor, ...]]
"""Gives the step and the new moments from the pseudo-gradient and the moments."""


def momentum_step(
    current: Mapping[str, Tensor],
    proposal: Mapping[str, Tensor],
    state: Moments,
    *,
    learning_rate: float = 1.0,
    beta: float = 0.9,
) -> tuple[Params, Moments]:
    """FedAvgM: ``m <- beta m + (proposal - x)``, ``x <- x + learning_rate m``.

    Heavy-ball momentum without dampening, as in ``torch.optim.SGD(momentum=beta)``. With learning rate 1 and beta 0 the
    result is the proposal.

    Parameters
    ----------
    current, proposal
        The server's tensors, and those that the aggregator proposes.
    state
        The optimiser's state, at first ``no_moments()``.
    learning_rate, beta
        Learning rate, above 0, and momentum, in [0, 1).

    Raises
    ------
    ValueError
        if a number is out of range.

    Paper: fedavgm, step
    """
    _check(learning_rate=learning_rate, beta=beta)

    def update(pseudo: Tensor, momentum: Tensor) -> tuple[Tensor, ...]:
        momentum = beta * momentum + pseudo
        return learning_rate * momentum, momentum

    return _stepped(current, proposal, state, update, {"momentum": 0.0})


def adam_step(
    current: Mapping[str, Tensor],
    proposal: Mapping[str, Tensor],
    state: Moments,
    *,
    learning_rate: float = 1e-2,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> tuple[Params, Moments]:
    """FedAdam: ``x <- x + learning_rate m / (sqrt(v) + tau)``.

    With D the proposal minus x: ``m <- beta1 m + (1 - beta1) D`` and ``v <- beta2 v + (1 - beta2) D^2``. In contrast to
    ``torch.optim.Adam`` there is no bias correction, and v starts at ``tau^2`` (m at 0).

    Parameters
    ----------
    current, proposal, state
        As for ``momentum_step``.
    learning_rate, tau
        Learning rate and constant in the denominator, both above 0.
    beta1, beta2
        Decay of the moments, in [0, 1).

    Raises
    ------
    ValueError
        if a number is out of range.

    Paper: fedopt, adam
    """
    _check(learning_rate=learning_rate, beta1=beta1, beta2=beta2, tau=tau)

    def update(pseudo: Tensor, momentum: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        momentum = beta1 * momentum + (1 - beta1) * pseudo
        variance = beta2 * variance + (1 - beta2) * pseudo.square()
        return learning_rate * momentum / (variance.sqrt() + tau), momentum, variance

    return _stepped(current, proposal, state, update, {"momentum": 0.0, "variance": tau**2})


def yogi_step(
    current: Mapping[str, Tensor],
    proposal: Mapping[str, Tensor],
    state: Moments,
    *,
    learning_rate: float = 1e-2,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> tuple[Params, Moments]:
    """FedYogi: as ``adam_step``, but ``v <- v - (1 - beta2) D^2 sign(v - D^2)``.

    The change of v does not depend on the size of v, so that after large steps it shrinks slowly.

    Parameters
    ----------
    current, proposal, state, learning_rate, beta1, beta2, tau
        As for ``adam_step``.

    Raises
    ------
    ValueError
        if a number is out of range.

    Paper: fedopt, yogi
    """
    _check(learning_rate=learning_rate, beta1=beta1, beta2=beta2, tau=tau)

    def update(pseudo: Tensor, momentum: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        momentum = beta1 * momentum + (1 - beta1) * pseudo
        square = pseudo.square()
        variance = variance - (1 - beta2) * square * torch.sign(variance - square)
        return learning_rate * momentum / (variance.sqrt() + tau), momentum, variance

    return _stepped(current, proposal, state, update, {"momentum": 0.0, "variance": tau**2})


def no_moments() -> Moments:
    """The state before the first step."""
    return {"momentum": {}, "variance": {}}


def _stepped(
    current: Mapping[str, Tensor],
    proposal: Mapping[str, Tensor],
    state: Moments,
    update: _Update,
    first: Mapping[Literal["momentum", "variance"], float],
) -> tuple[Params, Moments]:
    """Apply ``update`` to every tensor that was sent; ``first`` holds the initial value of each moment, by name."""
    if current.keys() != proposal.keys():
        odd = sorted(current.keys() ^ proposal.keys())[:5]
        raise ValueError(f"the proposal and the server's tensors have different names: {odd}")
    moments: Moments = {"momentum": {**state["momentum"]}, "variance": {**state["variance"]}}
    stepped: Params = {}
    for name, tensor in current.items():
        stepped[name] = tensor
        if proposal[name] is tensor:
            continue
        old = wide(tensor.detach())
        before = [
            wide(moments[kind][name]) if name in moments[kind] else torch.full_like(old, value)
            for kind, value in first.items()
        ]
        kept = torch.promote_types(tensor.dtype, torch.float32)
        most = 0.5 * math.sqrt(torch.finfo(kept).max)  # an infinite moment would stay infinite
        step, *after = update((wide(proposal[name].detach()) - old).clamp(-most, most), *before)
        stepped[name] = moved(tensor, step)
        for kind, value in zip(first, after, strict=True):
            moments[kind][name] = value.to(kept)
    return stepped, moments


def num_stalled(
    current: Mapping[str, Tensor], moved: Mapping[str, Tensor], fresh: Mapping[str, Tensor], share: float = 1e-3
) -> int:
    """The number of tensors that ``moved`` by less than this share of ``fresh``, a step with initial moments.

    A second moment that was once very large can stall a tensor for hundreds of rounds, which no other number shows.
    """
    return sum(
        float((moved[name] - tensor).abs().amax()) < share * float((fresh[name] - tensor).abs().amax())
        for name, tensor in current.items()
        if fresh[name] is not tensor and tensor.numel()
    )


def _check(*, learning_rate: float, **others: float) -> None:
    if not learning_rate > 0:
        raise ValueError(f"learning_rate = {learning_rate}: must be above 0")
    for name, value in others.items():
        if name == "tau" and not value > 0:
            raise ValueError(f"tau = {value}: must be above 0")
        if name != "tau" and not 0 <= value < 1:
            raise ValueError(f"{name} = {value}: must be at least 0 and below 1")
