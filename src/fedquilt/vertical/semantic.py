"""Semantic prototypes: a small network makes the prototype of a class from the class's attributes.

A class that no party has a row of then has a prototype too, as its attributes are known (zero-shot).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params
from fedquilt.vertical.joint import linear

_FIRST, _LAST = "semantic.1", "semantic.2"


@dataclass(frozen=True)
class Semantic:
    """How prototypes are made from attributes.

    Attributes
    ----------
    attributes
        Of each class, float32 (C, a).
    hidden
        Width of the network's hidden layer.
    """

    attributes: Tensor
    hidden: int

    def init(self, width: int, rng: Rng) -> Params:
        """The tensors of a party's network, for embeddings of this width."""
        first = linear(self.hidden, self.attributes.shape[1], rng.child(_FIRST))
        last = linear(width, self.hidden, rng.child(_LAST))
        pairs = ((_FIRST, first), (_LAST, last))
        return {f"{name}.{part}": one for name, pair in pairs for part, one in zip(_PARTS, pair, strict=True)}


_PARTS = ("weight", "bias")


def made_of(attributes: Tensor, tensors: Params) -> Tensor:
    """The prototypes of classes, (C, m), from their attributes (C, a), by a perceptron with one hidden layer.

    Paper: proto-evfl, semantic-prototypes
    """
    first, last = (tuple(tensors[f"{name}.{part}"] for part in _PARTS) for name in (_FIRST, _LAST))
    return torch.relu(attributes.to(first[0]) @ first[0].T + first[1]) @ last[0].T + last[1]


def attributes_of(file: str, classes: Sequence[str], key: str) -> Tensor:
    """The attributes of classes from a CSV file, float32 (C, a): each with mean 0 and deviation 1 over the classes.

    Parameters
    ----------
    file
        A table with a header; the first column names the class, the others are numbers. Further classes are ignored.
    classes
        The names of all classes.
    key
        The setting that named the file, for errors.

    Raises
    ------
    ConfigError
        if the file cannot be read, lacks a class, names one twice, or has a value that is no finite number.
    """
    said = f"{key} = '{file}'"
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            table = [line for line in csv.reader(lines) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{said}: cannot be read ({error}); give a CSV file with a row for each class") from error
    if len(table) < 2 or len(table[0]) < 2 or any(len(line) != len(table[0]) for line in table):
        raise ConfigError(
            f"{said}: needs a header and rows of as many cells as it has: the class's name, then its attributes"
        )
    found: dict[str, list[float]] = {}
    for name, *cells in table[1:]:
        if name in found:
            raise ConfigError(f"{said}: has the class '{name}' twice")
        found[name] = [_number(cell, f"{said}: class '{name}'") for cell in cells]
    if missing := [name for name in classes if name not in found]:
        raise ConfigError(f"{said}: has no row for the class '{missing[0]}'; the data has {', '.join(classes)}")
    values = torch.tensor([found[name] for name in classes], dtype=torch.float64)
    return ((values - values.mean(0)) / values.std(0, correction=0).clamp_min(1e-12)).float()


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{where}: '{cell}' is no finite number")
    return value
