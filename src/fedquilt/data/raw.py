"""A source as a set of named columns, before it is known which of them are inputs and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedquilt.core.errors import DataError


@dataclass(frozen=True)
class Raw:
    """Named columns of one length. ``read(name)`` gives a column, a list or a numpy array, and decodes nothing before.

    ``class_names[name]`` are the names that the integers of a label column stand for, where the source says so.
    """

    names: tuple[str, ...]
    num_rows: int
    read: Callable[[str], Any]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def from_columns(columns: Mapping[str, Sequence[Any]]) -> Raw:
    """The columns, which are already in memory, as a ``Raw``."""
    length = len(next(iter(columns.values()))) if columns else 0
    return Raw(tuple(columns), length, columns.__getitem__)


def joined(parts: Sequence[Raw], source: str) -> Raw:
    """The rows of all parts, one part after another.

    Raises
    ------
    DataError
        if the parts have unlike columns, or number their classes in unlike ways.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if set(part.names) != set(first.names):
            odd = ", ".join(sorted(set(part.names) ^ set(first.names)))
            raise DataError(f"data.source = '{source}': its files have unlike columns ({odd}); name one file instead")
        if dict(part.class_names) != dict(first.class_names):
            raise DataError(
                f"data.source = '{source}': its files number the classes differently; name one file instead"
            )

    def read(name: str) -> Sequence[Any] | np.ndarray:
        columns = [part.read(name) for part in parts]
        if all(isinstance(column, np.ndarray) for column in columns):
            return np.concatenate(columns)
        return [value for column in columns for value in column]

    return Raw(first.names, sum(part.num_rows for part in parts), read, first.class_names)
