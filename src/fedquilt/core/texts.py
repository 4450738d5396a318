"""Texts as tensors of bytes, so that a message can hold them, and back, checked as untrusted input.

A list of texts is two tensors: ``<name>.bytes``, (texts, bytes) of uint8, each row one text in UTF-8 with zeros behind
its end, and ``<name>.lengths``, (texts,) of int32. Their shapes depend only on the number of texts and on the largest
length, so that both sides know them before a message arrives. Nothing in a text is ever evaluated. A text has exactly
one such form; every other one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedquilt.core.errors import WireError
from fedquilt.core.types import Params, Range


def pack_texts(texts: Sequence[str], max_bytes: int, name: str = "texts") -> Params:
    """The texts as tensors ``<name>.bytes`` and ``<name>.lengths``.

    A text of more than ``max_bytes`` bytes loses its end; no character is cut in two. A lone surrogate, which UTF-8
    cannot hold, becomes a question mark.
    """
    rows = torch.zeros(len(texts), max_bytes, dtype=torch.uint8)
    lengths = torch.zeros(len(texts), dtype=torch.int32)
    for row, text in enumerate(texts):
        content = _cut(text.encode("utf-8", "replace"), max_bytes)
        lengths[row] = len(content)
        if content:
            rows[row, : len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return {f"{name}.bytes": rows, f"{name}.lengths": lengths}


def whole_texts(texts: Sequence[str], name: str = "texts") -> Params:
    """The texts as ``pack_texts`` packs them, with rows as long as the longest of them."""
    return pack_texts(texts, max((len(text.encode("utf-8", "replace")) for text in texts), default=0), name)


def unpack_texts(params: Mapping[str, Tensor], name: str = "texts") -> list[str]:
    """The texts that ``pack_texts`` put into these tensors.

    Raises
    ------
    WireError
        if a tensor is missing, or has another type or shape; if a length is not within its row; if bytes follow the end
        of a text, or a text is not UTF-8.
    """
    rows, lengths = (_tensor(params, f"{name}.{part}") for part in ("bytes", "lengths"))
    if rows.dtype != torch.uint8 or rows.dim() != 2:
        raise WireError(f"'{name}.bytes' is {rows.dtype} {tuple(rows.shape)}; it must be uint8 (texts, bytes)")
    if lengths.dtype != torch.int32 or lengths.shape != rows.shape[:1]:
        given = f"{lengths.dtype} {tuple(lengths.shape)}"
        raise WireError(f"'{name}.lengths' is {given}; it must be int32 {tuple(rows.shape[:1])}")
    content = rows.detach().cpu().contiguous().numpy()
    return [_text(content[row].tobytes(), length, f"'{name}' {row}") for row, length in enumerate(lengths.tolist())]


def text_form(count: int, max_bytes: int, name: str = "texts") -> Params:
    """Tensors of the form of ``count`` texts, all of them empty: for ``Exchange.expects``."""
    return pack_texts([""] * count, max_bytes, name)


def text_ranges(max_bytes: int, name: str = "texts") -> dict[str, Range]:
    """The ranges of both tensors: for ``Exchange.ranges``."""
    return {f"{name}.bytes": Range(0, 255, whole=True), f"{name}.lengths": Range(0, max_bytes, whole=True)}


def _cut(content: bytes, most: int) -> bytes:
    """The first characters of UTF-8 bytes that fit into ``most`` bytes."""
    return content if len(content) <= most else content[:most].decode("utf-8", "ignore").encode("utf-8")


def _tensor(params: Mapping[str, Tensor], name: str) -> Tensor:
    tensor = params.get(name)
    if not isinstance(tensor, Tensor):
        raise WireError(f"'{name}' is missing")
    return tensor


def _text(row: bytes, length: int, which: str) -> str:
    if not 0 <= length <= len(row):
        raise WireError(f"text {which} has length {length}; it must be from 0 to {len(row)}")
    if any(row[length:]):
        raise WireError(f"text {which} has bytes behind its end")
    try:
        return row[:length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"text {which} is not UTF-8 at byte {error.start}") from error
