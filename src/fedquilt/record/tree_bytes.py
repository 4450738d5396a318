"""Trees of tensors, numbers and text as the bytes of a safetensors file, and back, bit-identical.

torch is imported only by the functions that need it, because reports read a run without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fedquilt.core.types import Tree

# safetensors writes some newer dtypes but cannot read them back; dtypes not listed here are stored as bytes
_KINDS = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bool": "BOOL"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8"},
}
"""The names that safetensors has for dtypes."""


def tree_to_bytes(tree: Tree, name: str = "tree") -> bytes:
    """Encode a tree as a safetensors file: its tensors, and the tree's structure as JSON in the header.

    Exact for every dtype, for tensors without dimensions or elements, and for views. A tensor that is in several places
    of the tree is stored once, and is one tensor again when it is decoded. Device, ``requires_grad`` and the memory
    that different tensors share are not kept. ``name`` is the tree's name in error messages.

    Raises
    ------
    TypeError
        if the tree holds anything but dicts with string keys, lists, tensors, numbers, strings, booleans and None.
    """
    return b"".join(tree_pieces(tree, name))


def tree_pieces(tree: Tree, name: str = "tree") -> Iterator[bytes | memoryview]:
    """The bytes of a file that ``tree_from_bytes`` decodes, in pieces: the header, then one tensor after another.

    Of tensors on the processor that are all of their memory, nothing is copied. Otherwise as ``tree_to_bytes``.

    The file is written here and not by safetensors, so that its digest is known when its last byte is written, and a
    full disk is an OSError like any other.
    """
    from torch import uint8

    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {"__metadata__": {"tree": json.dumps(_packed(tree, name, tensors, {}))}}
    order = sorted(tensors, key=lambda own: (-tensors[own].element_size(), int(own)))  # aligned for whoever maps them
    start = 0
    for own in order:
        tensor = tensors[own]
        kind = _KINDS[str(tensor.dtype).removeprefix("torch.")]
        header[own] = {"dtype": kind, "shape": [*tensor.shape], "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for own in order:
        if tensors[own].nbytes:
            yield tensors[own].reshape(-1).view(uint8).numpy().data


def tree_from_bytes(content: bytes) -> Tree:
    """Decode the bytes that ``tree_to_bytes`` made."""
    from safetensors.torch import load

    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return _unpacked(json.loads(header["__metadata__"]["tree"]), load(content))


def _packed(tree: Tree, where: str, tensors: dict[str, Tensor], known: dict[int, Any]) -> Any:
    """Describe the tree in JSON types: the one key of each object ("dict", "tensor", "bytes", "float") is its type.

    ``known`` holds the descriptions of the tensors so far, by the identity of the tensor, and where their memory is.
    """
    from torch import Tensor, contiguous_format, strided, uint8

    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, float):
        return float(tree) if math.isfinite(tree) else {"float": repr(float(tree))}
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str):
                raise TypeError(f"{where}: the key {key!r} is {_a(key)}; keys are strings, so write it as {str(key)!r}")
        return {"dict": {key: _packed(value, f"{where}[{key!r}]", tensors, known) for key, value in tree.items()}}
    if isinstance(tree, list):
        return [_packed(value, f"{where}[{index}]", tensors, known) for index, value in enumerate(tree)]
    if isinstance(tree, Tensor):
        if id(tree) in known:
            return known[id(tree)]
        if tree.layout is not strided or tree.is_quantized or tree.is_meta:
            raise TypeError(f"{where} is a tensor without plain dense values ({tree.layout}, {tree.device})")
        name = str(len(tensors))
        tensor = tree.detach().cpu().resolve_conj().resolve_neg()
        if not _is_alone(tensor, known):  # safetensors refuses views and shared memory
            tensor = tensor.clone(memory_format=contiguous_format)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype in _KINDS:
            tensors[name] = tensor
            known[id(tree)] = {"tensor": name}
        else:
            tensors[name] = tensor.reshape(-1).view(uint8)
            known[id(tree)] = {"bytes": [name, dtype, list(tensor.shape)]}
        return known[id(tree)]
    advice = "; use a list" if isinstance(tree, (tuple, set)) else ""
    raise TypeError(
        f"{where} is {_a(tree)}, but a state or memory holds only dicts, lists, tensors, numbers, strings, booleans "
        f"and None{advice}"
    )


def _is_alone(tensor: Tensor, known: dict[int, Any]) -> bool:
    """Whether a tensor is all of its memory, which no other tensor of the tree has; ``known`` notes the memory."""
    storage = tensor.untyped_storage()
    place = -storage.data_ptr()  # identities are positive
    alone = place not in known and tensor.is_contiguous() and 0 < tensor.nbytes == storage.nbytes()
    known[place] = None
    return alone


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
