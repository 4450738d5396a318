"""Blinded ids as tensors of bytes, one row each, and what may be wrong with tensors that another party sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedquilt.core.errors import WireError


def as_tensor(content: bytes) -> Tensor:
    """The bytes as uint8 (bytes,)."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def as_rows(entries: Sequence[bytes]) -> Tensor:
    """Entries of equal length as uint8 (entries, bytes); at least one."""
    return as_tensor(b"".join(entries)).reshape(len(entries), -1)


def as_bytes(rows: Tensor) -> list[bytes]:
    """The rows of uint8 (entries, bytes), each as bytes."""
    content, width = rows.detach().cpu().contiguous().numpy().tobytes(), rows.shape[1]
    return [content[start : start + width] for start in range(0, len(content), width)]


def sorted_rows(entries: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """The entries as sorted rows, and where each of these stood, int64 (entries,)."""
    order = sorted(range(len(entries)), key=entries.__getitem__)
    return as_rows([entries[number] for number in order]), torch.tensor(order)


def common_order(rows: Iterable[int], ids: Sequence[str]) -> Tensor:
    """The rows in the order of the SHA-256 of their ids, int64 (rows,): the same in every party, and no file's own."""
    return torch.tensor(sorted(rows, key=lambda row: hashlib.sha256(ids[row].encode()).digest()), dtype=torch.int64)


def received_bytes(rows: Tensor | None, width: int, most: int) -> list[bytes]:
    """Blinded ids of this width that another party sent, each as bytes.

    Raises
    ------
    WireError
        if the tensor is missing or of another form, or holds none or more than ``most``.
    """
    if rows is None:
        raise WireError("the blinded ids are missing")
    if rows.dtype != torch.uint8 or rows.dim() != 2 or rows.shape[1] != width or not 1 <= len(rows) <= most:
        form = f"{rows.dtype} {tuple(rows.shape)}"
        raise WireError(f"the blinded ids are {form}; they must be torch.uint8 (from 1 to {most}, {width})")
    return as_bytes(rows)


def received_places(places: Tensor | None, count: int) -> Tensor:
    """Places in a list of ``count`` entries that another party sent, int64 (places,); -1 for none.

    Raises
    ------
    WireError
        if the tensor is missing or of another form, or names an entry twice or one that is not there.
    """
    if places is None:
        raise WireError("the places of the common rows are missing")
    if places.dtype != torch.int64 or places.dim() != 1:
        form = f"{places.dtype} {tuple(places.shape)}"
        raise WireError(f"the places of the common rows are {form}; they must be torch.int64 of one dimension")
    if len(places) and not -1 <= int(places.min()) <= int(places.max()) < count:
        raise WireError(
            f"the places of the common rows reach from {int(places.min())} to {int(places.max())}; they must be from "
            f"-1 to {count - 1}"
        )
    if repeats(places):
        raise WireError("the places of the common rows name a row twice")
    return places


def repeats(places: Tensor) -> bool:
    """Whether a place, other than -1, occurs twice."""
    held = places[places >= 0]
    return len(held.unique()) < len(held)
