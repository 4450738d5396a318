"""The wire format: a JSON head and tensors as Flower records, and back, bit-identical and checked as untrusted input.

A message consists of two records. ``index`` holds one JSON text: the head (sender, round, settings or metrics), and the
name, dtype and shape of every tensor. ``tensors`` holds one array of bytes: all tensors, one after another. Flower
hashes and splits each array of a message separately, so one long array is much faster than hundreds of short ones.

Incoming messages are untrusted. Nothing is unpickled. The index is checked completely, for consistency, against the
number of bytes received and against the allowed tensors, before the first tensor is allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedquilt.core.errors import FedquiltError
from fedquilt.core.params import num_bytes
from fedquilt.core.types import Params

FORMAT = 1
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
        *("complex128", "complex64"),
    )
}
"""The dtypes that can be sent, by their name on the wire."""

Announced = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""The tensors that a message may hold, by name: dtype and shape."""

MAX_BYTES = 2 << 30
"""The default for the most bytes of tensors that are accepted in one message."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_INDEX, _TENSORS = "index", "tensors"
_MAX_INDEX_CHARS, _CHARS_OF_A_TENSOR = 1 << 20, 1 << 10
_MAX_DIMS, _MAX_ELEMENTS = 64, 1 << 48
# a type of its own, so that Flower rejects mods that would average the raw bytes or add noise to them
_STYPE = "fedquilt.bytes"


class DecodeError(FedquiltError):
    """A message is malformed or does not match the request; the error names the sender."""


def announced(params: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return the dtype and shape of every tensor, by name."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in params.items()}


def packed(head: Mapping[str, Any], params: Mapping[str, torch.Tensor] | None = None) -> RecordDict:
    """Encode ``head`` and tensors as the two records of a message.

    Raises
    ------
    TypeError
        if ``head`` is not JSON, or a tensor has no plain dense values or a dtype that is not in ``DTYPES``.
    """
    params = params or {}
    table = [[name, _dtype_name(name, tensor), list(tensor.shape)] for name, tensor in params.items()]
    index = json.dumps({"format": FORMAT, **head, "tensors": table, "bytes": num_bytes(params)})
    data = b"".join(_raw(tensor) for tensor in params.values())
    array = Array("uint8", (len(data),), _STYPE, data)
    return RecordDict({_INDEX: ConfigRecord({"json": index}), _TENSORS: ArrayRecord({"bytes": array})})


def unpacked(
    content: RecordDict, sender: str, allowed: Announced | None = None, max_bytes: int = MAX_BYTES
) -> tuple[dict[str, Any], Params]:
    """Decode a message into its head and its tensors, each with memory of its own.

    ``sender`` names the sender in errors. If ``allowed`` is given, the tensors must be among them, with equal dtype and
    shape; any may be missing. Together they hold at most ``max_bytes`` bytes.

    Raises
    ------
    DecodeError
        if the message is malformed, or holds tensors that are not allowed.
    """
    limit = _MAX_INDEX_CHARS + _CHARS_OF_A_TENSOR * len(allowed or ())
    head, data = _head(content, sender, limit), _data(content, sender)
    if len(data) > max_bytes:
        raise DecodeError(f"{sender} sent {len(data)} bytes of tensors; at most {max_bytes} are taken")
    table = _table(head.pop("tensors", None), sender)
    total = head.pop("bytes", None)
    needed = sum(math.prod(shape) * DTYPES[dtype].itemsize for _, dtype, shape in table)
    if not total == needed == len(data):
        raise DecodeError(
            f"{sender} sent {len(data)} bytes of tensors, but its index says {shown(total)} and lists {needed}"
        )
    if allowed is not None:
        _check_announced(table, allowed, sender)
    # from here on, no more memory is allocated than has been received
    params, start = {}, 0
    for name, dtype, shape in table:
        size = math.prod(shape) * DTYPES[dtype].itemsize
        params[name] = _tensor(data, start, size, dtype, shape, f"{sender}: tensor '{name}'")
        start += size
    return head, params


# Reading ------------------------------------------------------------


def _head(content: RecordDict, sender: str, limit: int) -> dict[str, Any]:
    record = content.get(_INDEX)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise DecodeError(f"{sender} sent a message without an index")
    if len(text) > limit:
        raise DecodeError(f"{sender} sent an index of {len(text)} characters; at most {limit} are read")
    try:
        head = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"{sender} sent an index that is not JSON ({type(error).__name__})") from error
    if not isinstance(head, dict):
        raise DecodeError(f"{sender} sent an index that is not a JSON object")
    written = head.pop("format", None)
    if written != FORMAT or not is_int(written):
        raise DecodeError(
            f"{sender} sent a message of format {shown(written)}, but this fedquilt reads format {FORMAT}; use the "
            "same version of fedquilt on both sides"
        )
    return head


def _data(content: RecordDict, sender: str) -> bytes:
    record = content.get(_TENSORS)
    array = record.get("bytes") if isinstance(record, ArrayRecord) else None
    if not isinstance(array, Array) or len(record or ()) != 1:
        raise DecodeError(f"{sender} sent a message without its one array of bytes")
    if (array.stype, array.dtype, array.shape) != (_STYPE, "uint8", (len(array.data),)):
        raise DecodeError(f"{sender} sent an array that is not the {len(array.data)} plain bytes it holds")
    return array.data


def _table(entries: Any, sender: str) -> list[tuple[str, str, tuple[int, ...]]]:
    if not isinstance(entries, list):
        raise DecodeError(f"{sender} sent an index without a list of tensors")
    table, seen = [], set()
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
            raise DecodeError(f"{sender} sent the tensor entry {shown(entry)}, which is not [name, dtype, shape]")
        name, dtype, shape = entry
        if name in seen:
            raise DecodeError(f"{sender} sent tensor {shown(name)} twice")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise DecodeError(f"{sender} sent tensor {shown(name)} with the unknown dtype {shown(dtype)}")
        if (
            not isinstance(shape, list)
            or len(shape) > _MAX_DIMS
            or not all(is_int(size) and 0 <= size <= _MAX_ELEMENTS for size in shape)
            # an empty tensor's other sizes must not overflow torch's strides either
            or math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS
        ):
            raise DecodeError(f"{sender} sent tensor {shown(name)} with the impossible shape {shown(shape)}")
        seen.add(name)
        table.append((name, dtype, tuple(shape)))
    return table


def _check_announced(table: Iterable[tuple[str, str, tuple[int, ...]]], allowed: Announced, sender: str) -> None:
    for name, dtype, shape in table:
        if name not in allowed:
            raise DecodeError(f"{sender} sent tensor {shown(name)}, which nobody asked for")
        wanted_dtype, wanted_shape = allowed[name]
        if (DTYPES[dtype], shape) != (wanted_dtype, tuple(wanted_shape)):
            raise DecodeError(
                f"{sender} sent tensor {shown(name)} as {dtype} {shape}; "
                f"it is {_NAMES.get(wanted_dtype, str(wanted_dtype))} {tuple(wanted_shape)}"
            )


def _tensor(data: bytes, start: int, size: int, dtype: str, shape: tuple[int, ...], what: str) -> torch.Tensor:
    # memory allocated by torch, with its alignment: on a view into the message, a matrix product may round differently
    own = torch.empty(size, dtype=torch.uint8)
    source = np.frombuffer(data, dtype=np.uint8, count=size, offset=start)
    if dtype == "bool" and size and source.max() > 1:
        raise DecodeError(f"{what} is bool but holds bytes other than 0 and 1")
    own.numpy()[:] = source
    return own.view(DTYPES[dtype]).reshape(shape)


# Writing ------------------------------------------------------------


def _dtype_name(name: str, tensor: torch.Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in _NAMES:
        raise TypeError(f"tensor '{name}' cannot be sent: {tensor.dtype}, {tensor.layout}, {tensor.device}")
    return _NAMES[tensor.dtype]


def _raw(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1).contiguous()
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def is_int(value: Any) -> TypeGuard[int]:
    """Whether ``value`` is an integer and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Return the repr of an untrusted value, shortened to fit in a line of a log."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else text[:77] + "..."
