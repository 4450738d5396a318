"""Arithmetic on named tensors; no function changes its arguments."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch

from fedquilt.core.types import Params


def add(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> Params:
    """``left + right`` name by name; both must hold the same names and shapes."""
    _same_layout(left, right)
    return {name: left[name] + right[name] for name in left}


def sub(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> Params:
    """``left - right`` name by name; both must hold the same names and shapes."""
    _same_layout(left, right)
    return {name: left[name] - right[name] for name in left}


def scale(params: Mapping[str, torch.Tensor], factor: float) -> Params:
    """Every tensor times ``factor``."""
    return {name: tensor * factor for name, tensor in params.items()}


def select(params: Mapping[str, torch.Tensor], names: Collection[str]) -> Params:
    """The tensors with one of these ``names``, in the order of ``params``."""
    wanted = set(names)
    return {name: tensor for name, tensor in params.items() if name in wanted}


def without(params: Mapping[str, torch.Tensor], names: Collection[str]) -> Params:
    """The tensors with none of these ``names``, in the order of ``params``."""
    unwanted = set(names)
    return {name: tensor for name, tensor in params.items() if name not in unwanted}


def squared_norm(params: Mapping[str, torch.Tensor]) -> float:
    """``sum over names of ||tensor||_F^2``, accumulated in float64; 0 for no tensors."""
    return float(sum(tensor.detach().double().square().sum() for tensor in params.values()))


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the widest floating-point type of its device, for sums."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def narrow(value: torch.Tensor, base: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A wide value in the dtype of ``base``, or in ``dtype``; where it equals ``base``, with the exact bits of it.

    The sign of a zero is kept too.
    """
    base = base.detach()
    dtype = base.dtype if dtype is None else dtype
    return torch.where(value == wide(base), base.to(dtype), value.to(dtype))


def moved(base: torch.Tensor, step: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """``base + step``, summed in the widest type, in the dtype of ``base``, or in ``dtype``.

    Where the sum equals ``base``, it is bit-identical to it.
    """
    return narrow(wide(base.detach()) + step, base, dtype)


def num_bytes(params: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the raw tensors, without names or framing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in params.values())


def not_finite(params: Mapping[str, torch.Tensor]) -> str | None:
    """The first name whose tensor holds a NaN or an infinity, or None."""
    for name, tensor in params.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            return name
    return None


def _is_finite(tensor: torch.Tensor) -> bool:
    # NaN and infinity survive a sum, which takes a tenth of the time; as a sum can also overflow, check the elements
    return math.isfinite(float(tensor.detach().sum())) or bool(torch.isfinite(tensor).all())


def _same_layout(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        raise ValueError(f"the two sides hold different tensors: {odd[:5]}{' and more' if len(odd) > 5 else ''}")
    for name in left:  # torch would silently broadcast rank 1 over rank 8
        if left[name].shape != right[name].shape:
            shapes = f"{tuple(left[name].shape)} on the left and {tuple(right[name].shape)} on the right"
            raise ValueError(f"tensor '{name}' is {shapes}")
