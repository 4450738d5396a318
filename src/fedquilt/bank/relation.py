"""Which of a client's layers belong to which of the server's slots, where both have unlike numbers of layers.

A relation P is ``(num_slots, num_layers)``: P[j, l] is how much of the client's layer l comes from slot j. No entry is
below 0 and each column sums to 1, so that every layer is a mean of slots. ``lowered`` takes the server's slots to the
client's layers, ``lifted`` takes what the layers learned back to the slots:

    lowered   X_l = sum_j P[j, l] G_j
    lifted    D_j = sum_l P[j, l] C_l / sum_l P[j, l]      over the layers that have a value there

Both are means: where all slots, or all layers, are equal, so is the result, and nothing comes of nothing. The transpose
of P without the division would shrink and blur what it carries in every round. What a client sends comes back to it as
``W C`` with ``W = smoothing(P)``, which is symmetric and doubly stochastic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedquilt.adapters.sites import slots_of
from fedquilt.core.params import wide


def depth_logits(num_layers: int, num_slots: int, width: float = 0.5) -> Tensor:
    """The logits ``(num_slots, num_layers)`` of a relation by relative depth; ``relation`` makes it of them.

    ``-((j + 1/2)/S - (l + 1/2)/L)^2 S^2 / (2 width^2)`` for slot j of S and layer l of L: a bell around the layer's own
    depth, ``width`` slots wide. As many slots as layers and a small width make the identity.

    Raises
    ------
    ValueError
        if a number is not above 0.

    Paper: h2tune, relative-depth
    """
    _check(num_layers, num_slots)
    if not width > 0:
        raise ValueError(f"width is {width}; it must be above 0 slots")
    slots = (torch.arange(num_slots, dtype=torch.float64) + 0.5) / num_slots
    layers = (torch.arange(num_layers, dtype=torch.float64) + 0.5) / num_layers
    distance = (slots[:, None] - layers) * num_slots  # in slots
    return (-distance.square() / (2 * width**2)).float()


def relation(logits: Tensor) -> Tensor:
    """The relation that logits of the same shape stand for: a softmax over the slots of each layer.

    Paper: h2tune, relation
    """
    return logits.softmax(0)


def top_aligned(num_layers: int, num_slots: int) -> Tensor:
    """The fixed relation in which the last layer has the last slot, the one before it the one before, and so on.

    Raises
    ------
    ValueError
        if there are more layers than slots: the first ones would have none.
    """
    _check(num_layers, num_slots)
    if num_layers > num_slots:
        raise ValueError(f"{num_layers} layers cannot be aligned with {num_slots} slots; give at least {num_layers}")
    return torch.eye(num_slots)[:, num_slots - num_layers :]


def depth_slots(num_layers: int, num_slots: int) -> Tensor:
    """The fixed relation in which layer l of L has slot ``floor((l + 1/2) S / L)`` of S, alone or with others.

    Raises
    ------
    ValueError
        if a number is not above 0.
    """
    return torch.eye(num_slots)[:, list(slots_of(num_layers, num_slots))]


def lowered(slots: Tensor, relation: Tensor) -> Tensor:
    """What the client's layers get: ``X_l = sum_j P[j, l] G_j``, ``(num_slots, ...) -> (num_layers, ...)``.

    Gradients go to the slots and to the relation.

    Paper: h2tune, lower
    """
    layers: Tensor = torch.tensordot(relation.T, slots, dims=1)
    return layers


def lifted(layers: Tensor, relation: Tensor, covered: Tensor | None = None) -> Tensor:
    """What the slots get of the client's layers, ``(num_layers, ...) -> (num_slots, ...)``, in the dtype of ``layers``.

    ``D_j = sum_l P[j, l] C_l / sum_l P[j, l]``, for each entry over the layers where ``covered`` (boolean, shaped as
    ``layers``; None: everywhere) is true; 0 where no layer that has an entry belongs to a slot.

    Paper: h2tune, lift
    """
    weights = wide(relation)
    there = torch.ones_like(layers, dtype=torch.bool) if covered is None else covered
    # selected, not multiplied by 0: what is not covered may hold anything
    values = torch.where(there, wide(layers), 0.0)
    total = torch.tensordot(weights, values, dims=1)
    shares = torch.tensordot(weights, there.to(weights.dtype), dims=1)
    return torch.where(shares > 0, total / torch.where(shares > 0, shares, 1.0), 0.0).to(layers.dtype)


def smoothing(relation: Tensor) -> Tensor:
    """``W = P^T diag(1 / rowsum P) P``, ``(num_layers, num_layers)``: how a client's update comes back to it, alone.

    Slots that no layer belongs to take no part.
    """
    return lowered(lifted(torch.eye(relation.shape[1], dtype=relation.dtype), relation), relation)


def _check(num_layers: int, num_slots: int) -> None:
    if num_layers < 1 or num_slots < 1:
        raise ValueError(f"{num_layers} layers and {num_slots} slots; there must be at least one of each")
