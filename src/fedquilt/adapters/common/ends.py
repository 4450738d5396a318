"""Ends of adapters in common coordinates that a client trains for itself, in place of its model's axes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from fedquilt.adapters.common.module import ENDS, CommonLinear
from fedquilt.core.types import Blocks, Params


def end_names(linears: Mapping[str, CommonLinear], blocks: Blocks, layers: Collection[int]) -> frozenset[str]:
    """The names of the ends in these blocks, ``<module>.encoder`` and ``<module>.decoder``.

    They are not part of a layout, since they are trained by single clients or not at all.
    """
    chosen = set(layers)
    return frozenset(f"{module}.{end}" for module in linears if blocks.depth(module) in chosen for end in ENDS)


def put_ends(linears: Mapping[str, CommonLinear], params: Mapping[str, Tensor]) -> frozenset[str]:
    """Put those of the tensors that are ends in place of the axes, and the axes everywhere else; return their names.

    Raises
    ------
    ValueError
        if an end has another shape than the axis.
    """
    found = set()
    for module, linear in linears.items():
        given = {end: params[f"{module}.{end}"] for end in ENDS if f"{module}.{end}" in params}
        linear.ends = {}
        for end, tensor in given.items():
            axis = linear.get_buffer(end)
            if tensor.shape != axis.shape:
                raise ValueError(f"'{module}.{end}' is {tuple(tensor.shape)}, not {tuple(axis.shape)}")
            linear.ends[end] = tensor.detach().to(axis).clone()
            found.add(f"{module}.{end}")
    return frozenset(found)


def opened(linears: Mapping[str, CommonLinear], names: Collection[str]) -> Params:
    """The ends among ``names``, to be trained: what the modules compute with, copied from the axes at first."""
    chosen, found = set(names), {}
    for module, linear in linears.items():
        for end in ENDS:
            if (name := f"{module}.{end}") in chosen:
                found[name] = linear.ends.setdefault(end, linear.get_buffer(end).clone())
    return found
