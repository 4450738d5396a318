"""Whether matrix products run in another number type than their inputs (mixed precision)."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_device(device: torch.device) -> str:
    """The device type whose autocast holds on ``device``: on the meta device, which has none, the processor's."""
    return "cpu" if device.type == "meta" else device.type


def in_dtype_of(x: Tensor, parameter: Tensor) -> Tensor:
    """The input in a parameter's dtype, for adapters around a base in half precision; unchanged under autocast."""
    return x if x.dtype == parameter.dtype or autocast_dtype(x) is not None else x.to(parameter.dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type in which autocast computes matrix products of ``x``; None where it is off."""
    kind = autocast_device(x.device)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
