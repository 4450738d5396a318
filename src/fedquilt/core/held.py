"""Tensors that an order repeats within a round: a client that keeps them is not sent them again.

An exchange with ``keeps`` has its clients remember the tensors of their orders until they work again. In a later
exchange of the round the server sends, in place of a tensor that is the same to the bit, an empty one named
``<name>:held``; the client puts it back before it works. Methods, checks and wires see full orders on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedquilt.core.errors import WireError
from fedquilt.core.types import Memory, Order

HELD = "held"
"""Key of the kept tensors in a client's memory; hidden from ``work``."""

_MARK = ":held"


def without_held(order: Order, held: Mapping[str, Tensor]) -> Order:
    """The order with a mark in place of every tensor that is the same as the one that the client holds."""
    marked = {
        f"{name}{_MARK}" if (kept := _same(tensor, held.get(name))) else name: _EMPTY if kept else tensor
        for name, tensor in order.params.items()
    }
    return replace(order, params=marked)


def with_held(order: Order, memory: Memory) -> Order:
    """The order with the tensors that the client holds in place of marks.

    Raises
    ------
    WireError
        if the client does not hold a tensor of this round.
    """
    if not any(name.endswith(_MARK) for name in order.params):
        return order
    kept = memory.get(HELD, {})
    held = kept["params"] if kept and kept["round"] == order.round else {}
    params = {}
    for name, tensor in order.params.items():
        if not name.endswith(_MARK):
            params[name] = tensor
        elif (own := name.removesuffix(_MARK)) in held:
            params[own] = held[own]
        else:
            raise WireError(f"the client does not hold '{own}', which the server did not send again")
    return replace(order, params=params)


def keeping(memory: Memory, order: Order) -> Memory:
    """The memory with the tensors of an order, until the next work."""
    return {**memory, HELD: {"round": order.round, "params": dict(order.params)}}


_EMPTY = torch.zeros(0, dtype=torch.uint8)


def _same(tensor: Tensor, other: Tensor | None) -> bool:
    if tensor is other:
        return True
    if other is None or tensor.is_meta or tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    return torch.equal(tensor.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))
