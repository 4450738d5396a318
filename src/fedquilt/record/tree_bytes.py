"""Trees of tensors, numbers and text as the bytes of a safetensors file, and back, to the bit.

torch is imported by the functions that need it: reports read a run without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fedquilt.core.types import Tree

# safetensors writes some of the newest dtypes but does not read them back; those not listed go as bytes
_STORED_AS_THEY_ARE = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


def tree_to_bytes(tree: Tree, name: str = "tree") -> bytes:
    """A safetensors file that holds every tensor of a tree, with the tree's shape as JSON in its header.

    Exact for every dtype, for tensors without dimensions or elements, and for views. Device,
    ``requires_grad`` and shared memory are not kept. ``name`` is the tree's name in messages.

    Raises
    ------
    TypeError
        if something in it is not a dict with string keys, list, tensor, number, string, boolean or None (a tuple).
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    shape = json.dumps(_packed(tree, name, tensors))
    return bytes(save(tensors, metadata={"tree": shape}))


def tree_from_bytes(content: bytes) -> Tree:
    """The tree of which ``content`` is the file."""
    from safetensors.torch import load

    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return _unpacked(json.loads(header["__metadata__"]["tree"]), load(content))


def _packed(tree: Tree, where: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON: the one key of a JSON object, "dict", "tensor", "bytes" or "float", says what it stands for."""
    from torch import Tensor, contiguous_format, strided, uint8

    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, float):
        return float(tree) if math.isfinite(tree) else {"float": repr(float(tree))}
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str):
                raise TypeError(f"{where}: the key {key!r} is {_a(key)}; keys are strings, so write it as {str(key)!r}")
        return {"dict": {key: _packed(value, f"{where}[{key!r}]", tensors) for key, value in tree.items()}}
    if isinstance(tree, list):
        return [_packed(value, f"{where}[{index}]", tensors) for index, value in enumerate(tree)]
    if isinstance(tree, Tensor):
        if tree.layout is not strided or tree.is_quantized or tree.is_meta:
            raise TypeError(f"{where} is a tensor without plain dense values ({tree.layout}, {tree.device})")
        name = str(len(tensors))
        # a copy of its own: safetensors refuses views and shared memory
        tensor = tree.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=contiguous_format)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype in _STORED_AS_THEY_ARE:
            tensors[name] = tensor
            return {"tensor": name}
        tensors[name] = tensor.reshape(-1).view(uint8)
        return {"bytes": [name, dtype, list(tensor.shape)]}
    advice = "; use a list" if isinstance(tree, (tuple, set)) else ""
    raise TypeError(
        f"{where} is {_a(tree)}, but a state or memory holds only dicts, lists, tensors, numbers, strings, booleans "
        f"and None{advice}"
    )


def _unpacked(shape: Any, tensors: Mapping[str, Tensor]) -> Tree:
    if isinstance(shape, list):
        return [_unpacked(value, tensors) for value in shape]
    if not isinstance(shape, dict):
        return shape
    ((kind, value),) = shape.items()
    if kind == "dict":
        return {key: _unpacked(entry, tensors) for key, entry in value.items()}
    if kind == "bytes":
        import torch

        name, dtype, size = value
        return tensors[name].view(getattr(torch, dtype)).reshape(size)
    return tensors[value] if kind == "tensor" else float(value)


def _a(value: Any) -> str:
    return f"a {type(value).__name__}"
