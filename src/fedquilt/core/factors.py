"""LoRA factors: a product, one client's adapter, those in sets of named tensors, and truncation to another rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from fedquilt.core.types import Layout, Params

FACTORS = ("lora_A", "lora_B")
MAGNITUDE = "lora_magnitude_vector"
"""Last part of the name of DoRA's magnitude of a module: m (d_out,). It does not depend on the rank."""
BIAS = "lora_bias"
"""Last part of the name of the bias of a module's second factor, (d_out,): ``s (B A x + bias)``."""
SHIFT = "shift"
"""Last part of the name of a change that was merged into a module's base: (d_out, d_in), unscaled."""
CORE = "core"
"""Last part of the name of the matrix between a module's factors: T (r, r) in ``B (I + T) A``."""

_RANK_AXIS = {"lora_A": 0, "lora_B": 1}


class Product(NamedTuple):
    """The matrix ``B @ A``, (d_out, r) times (r, d_in), kept as its two factors; with r = 0 it is zero."""

    B: Tensor
    A: Tensor

    @property
    def rank(self) -> int:
        """r, the number of columns of B: an upper bound on the rank of the matrix."""
        return self.B.shape[1]

    def to(self, dtype: torch.dtype) -> Product:
        """The product in another dtype."""
        return Product(self.B.to(dtype), self.A.to(dtype))


class ProductTree(TypedDict):
    """A product as it is kept in a server's state, which is a tree: ``Product(**tree)`` reads it."""

    B: Tensor
    A: Tensor


class Factors(NamedTuple):
    """One client's adapter of one module: ``D = scale * B @ A``, (d_out, r) and (r, d_in), and the client's weight.

    Weights are relative: functions that combine factors divide by the sum of the weights.
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0
    weight: float = 1.0


def factors(params: Mapping[str, Tensor]) -> dict[str, Product]:
    """The factors by module path, for the modules that have both."""
    a, b = FACTORS
    modules = [name.removesuffix(f".{a}") for name in params if name.endswith(f".{a}")]
    return {
        module: Product(params[f"{module}.{b}"], params[f"{module}.{a}"])
        for module in modules
        if f"{module}.{b}" in params
    }


def named(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Params:
    """The tensors by name, from (B, A) by module path: the inverse of ``factors``."""
    a, b = FACTORS
    return {f"{module}.{part}": value for module, (B, A) in pairs.items() for part, value in ((a, A), (b, B))}


def cut(params: Mapping[str, Tensor], rank: int | None) -> Params:
    """Truncate every pair of factors to ``rank``: the first columns of B and the first rows of A.

    Factors of a lower rank and all other tensors are unchanged; with None, everything is.
    """
    if rank is None:
        return dict(params)
    return {name: _cut(name, tensor, rank) for name, tensor in params.items()}


def at_rank(layout: Layout, rank: int | None) -> Layout:
    """The layout of a client whose adapters have this rank, or the module's own rank where that is lower."""
    if rank is None:
        return layout
    return replace(layout, shapes={name: _shape(name, shape, rank) for name, shape in layout.shapes.items()})


def same_but_rank(name: str, shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes of a tensor are equal, or differ only in the rank of an adapter (which is at least 1)."""
    axis = _RANK_AXIS.get(_factor(name))
    if axis is None or len(shape) != 2 or len(other) != 2:
        return tuple(shape) == tuple(other)
    return shape[1 - axis] == other[1 - axis] and shape[axis] >= 1


def modules_of(names: Iterable[str]) -> tuple[str, ...]:
    """The module paths of the factors among ``names``, without duplicates, in their order."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names if is_factor(name)))


def is_factor(name: str) -> bool:
    """Whether the tensor of this name is one of a module's two factors."""
    return _factor(name) in FACTORS


def _factor(name: str) -> str:
    return name.rpartition(".")[2]


def _cut(name: str, tensor: Tensor, rank: int) -> Tensor:
    axis = _RANK_AXIS.get(_factor(name))
    return tensor if axis is None else tensor.narrow(axis, 0, min(rank, tensor.shape[axis]))


def _shape(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    axis = _RANK_AXIS.get(_factor(name))
    return tuple(min(rank, size) if number == axis else size for number, size in enumerate(shape))
