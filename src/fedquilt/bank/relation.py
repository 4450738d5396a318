"""The relation between a client's layers and the server's slots, for models of any depth.

A relation P is ``(num_slots, num_layers)``: P[j, l] is the share of slot j in the client's layer l. No entry is below 0
and each column sums to 1, so that every layer is a mean of slots. ``lowered`` maps the server's slots to the client's
layers, and ``lifted`` maps the changes of the layers back to the slots:

    lowered   X_l = sum_j P[j, l] G_j
    lifted    D_j = sum_l P[j, l] C_l / sum_l P[j, l]      over the layers that have a value there

Both are means: if all slots, or all layers, are equal, the result equals them, and zeros give zeros. The transpose of P
without the division would shrink and blur the changes in every round. A client's own change C comes back to it as ``W
C`` with ``W = smoothing(P)``, which is symmetric and doubly stochastic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedquilt.adapters.sites import slots_of
from fedquilt.core.params import wide


def depth_logits(num_layers: int, num_slots: int, width: float = 0.5) -> Tensor:
    """The logits ``(num_slots, num_layers)`` of a relation by relative depth, to be passed to ``relation``.

    ``-((j + 1/2)/S - (l + 1/2)/L)^2 S^2 / (2 width^2)`` for slot j of S and layer l of L: a Gaussian around the layer's
    relative depth with a standard deviation of ``width`` slots. With equal numbers of slots and layers and a small
    width, the relation is the identity.

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
    """The relation with these logits: a softmax over the slots of each layer.

    Paper: h2tune, relation
    """
    return logits.softmax(0)


def top_aligned(num_layers: int, num_slots: int) -> Tensor:
    """The fixed relation that assigns the last layer to the last slot, the layer before to the slot before, and so on.

    Raises
    ------
    ValueError
        if there are more layers than slots: the first layers would have no slot.
    """
    _check(num_layers, num_slots)
    if num_layers > num_slots:
        raise ValueError(f"{num_layers} layers cannot be aligned with {num_slots} slots; give at least {num_layers}")
    return torch.eye(num_slots)[:, num_slots - num_layers :]


def depth_slots(num_layers: int, num_slots: int) -> Tensor:
    """The fixed relation that assigns layer l of L to slot ``floor((l + 1/2) S / L)`` of S.

    Raises
    ------
    ValueError
        if a number is not above 0.
    """
    return torch.eye(num_slots)[:, list(slots_of(num_layers, num_slots))]


def lowered(slots: Tensor, relation: Tensor) -> Tensor:
    """Map slots to layers: ``X_l = sum_j P[j, l] G_j``, ``(num_slots, ...) -> (num_layers, ...)``.

    Gradients go to the slots and to the relation.

    Paper: h2tune, lower
    """
    layers: Tensor = torch.tensordot(relation.T, slots, dims=1)
    return layers


def lifted(layers: Tensor, relation: Tensor, covered: Tensor | None = None) -> Tensor:
    """Map layers to slots, ``(num_layers, ...) -> (num_slots, ...)``, in the dtype of ``layers``.

    ``D_j = sum_l P[j, l] C_l / sum_l P[j, l]``, for each entry over the layers where ``covered`` (boolean, in the shape
    of ``layers``; None: everywhere) is true; 0 if there is no such layer in a slot.

    Paper: h2tune, lift
    """
    weights = wide(relation)
    there = torch.ones_like(layers, dtype=torch.bool) if covered is None else covered
    # selected and not multiplied by 0: values that are not covered may be NaN
    values = torch.where(there, wide(layers), 0.0)
    total = torch.tensordot(weights, values, dims=1)
    shares = torch.tensordot(weights, there.to(weights.dtype), dims=1)
    return torch.where(shares > 0, total / torch.where(shares > 0, shares, 1.0), 0.0).to(layers.dtype)


def smoothing(relation: Tensor) -> Tensor:
    """The matrix ``W = P^T diag(1 / rowsum P) P``, ``(num_layers, num_layers)``, of ``lifted`` and then ``lowered``.

    It is how a client's own change returns to it if it is alone. Slots without layers are left out.
    """
    return lowered(lifted(torch.eye(relation.shape[1], dtype=relation.dtype), relation), relation)


def _check(num_layers: int, num_slots: int) -> None:
    if num_layers < 1 or num_slots < 1:
        raise ValueError(f"{num_layers} layers and {num_slots} slots; there must be at least one of each")
