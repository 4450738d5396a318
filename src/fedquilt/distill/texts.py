"""Texts as tensors of bytes, for messages that hold nothing but tensors and numbers, and back, checked.

Texts of other parties are untrusted: they are decoded strictly and bounded, and nothing in them is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedquilt.core.errors import WireError

_ALLOWED = ("\n", "\t")
"""Control characters that a text may hold."""


def text_rows(texts: Sequence[str], width: int) -> Tensor:
    """The texts in UTF-8, (texts, ``width``) of uint8, padded with zeros; longer ones lose their ends.

    No character is cut in two. Control characters other than new lines and tabs are left out.
    """
    rows = torch.zeros(len(texts), width, dtype=torch.uint8)
    for row, text in enumerate(texts):
        content = "".join(sign for sign in text if not _is_control(sign)).encode("utf-8", "ignore")
        content = content[:width].decode("utf-8", "ignore").encode("utf-8")
        if content:
            rows[row, : len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return rows


def texts_of(rows: object, count: int, width: int) -> list[str]:
    """The texts that ``text_rows`` wrote.

    Raises
    ------
    WireError
        if this is not a tensor of ``count`` texts of ``width`` bytes, bytes follow a text's end, a text is not UTF-8,
        or it holds a control character.
    """
    if not isinstance(rows, Tensor) or rows.dtype != torch.uint8 or rows.shape != (count, width):
        given = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise WireError(f"texts are {given}; they must be {torch.uint8} {(count, width)}")
    return [_decoded(bytes(row.tolist()), index) for index, row in enumerate(rows)]


def _decoded(content: bytes, index: int) -> str:
    """The text of one row."""
    text_bytes, _, rest = content.partition(b"\0")
    if rest.strip(b"\0"):
        raise WireError(f"text {index} (counted from 0) has bytes behind its end")
    try:
        text = text_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"text {index} (counted from 0) is not UTF-8 at byte {error.start}") from error
    wrong = next((sign for sign in text if _is_control(sign)), None)
    if wrong is not None:
        raise WireError(f"text {index} (counted from 0) holds the control character {wrong!r}")
    return text


def _is_control(sign: str) -> bool:
    return (ord(sign) < 32 and sign not in _ALLOWED) or 127 <= ord(sign) < 160
