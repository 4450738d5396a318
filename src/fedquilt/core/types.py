"""The data types that a server, its clients and a method share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from fedquilt.core.rng import Rng

Params = dict[str, Tensor]
"""Trainable tensors by name, without the frozen base."""

ClientId = int
"""Partition number ``0..n-1``, which is not the node number of a transport."""

Tree = Any
"""Nested dicts (with string keys) and lists of tensors, numbers, strings, booleans and None.

A server's state and a client's memory are trees, so that one checkpoint format serves every method. What a method or a
wrapper keeps in the state is written down in a ``TypedDict`` beside it; the loop, engines and checkpoints know no more
than that it is a tree."""


class ModelState(TypedDict):
    """The state of a server that keeps tensors which clients update; methods and wrappers add entries to it."""

    params: Params


Memory = dict[str, Any]
"""A client's private tree, which never travels.

By convention ``memory["params"]`` holds the client's own part of the model, which takes precedence over the tensors of
an order in training and in evaluation, and ``memory["base"]`` the changes that a method has merged into the base."""


class Range(NamedTuple):
    """The numbers from ``low`` to ``high``, both included; only integers if ``whole``."""

    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Budget:
    """What a client can afford.

    ``layers`` is the number of blocks whose adapters it can train, ``rank`` the rank of its adapters (None: that of
    the layout).
    """

    layers: int
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """What the server may know about a client.

    Attributes
    ----------
    id
        The client's number.
    num_examples
        Number of its training rows.
    architecture
        Name of its architecture: clients of one architecture have the same layout on the same base.
    budget
        What it can afford to train.
    task
        Name of its task.
    group
        Label of its group, if the federation has groups.
    """

    id: ClientId
    num_examples: int
    architecture: str
    budget: Budget
    task: str
    group: str = ""


@dataclass(frozen=True)
class Order:
    """The message from the server to one client.

    A method fills ``params`` and ``settings`` (numbers, strings, lists of them); the loop sets ``round`` and ``rng``.
    """

    params: Params
    settings: Mapping[str, Any] = field(default_factory=dict)
    round: int = 0
    rng: Rng = Rng(0)  # noqa: RUF009  (a stream is a value)


@dataclass(frozen=True)
class Reply:
    """The message from one client to the server; everything in it crosses the network.

    Attributes
    ----------
    client
        The client's number.
    params
        The tensors that it sends.
    weight
        Its weight in examples, above 0.
    metrics
        Numbers that it measured, by name.
    round
        The round of the order that it answers, set by the loop, so that a replayed reply is recognised.
    """

    client: ClientId
    params: Params
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    round: int = 0


@dataclass(frozen=True)
class Failure:
    """A client without a usable reply, and the reason."""

    client: ClientId
    reason: str


@dataclass(frozen=True)
class Turn:
    """What ``ask`` is given besides the state: the round's number, its cohort and its random stream.

    ``rng`` is the same for every exchange of a round; a method takes a child with a name of its own for every draw.
    """

    round: int
    cohort: tuple[Profile, ...]
    rng: Rng


@dataclass(frozen=True)
class Blocks:
    """The module list of a model's transformer blocks: its module path (``"vit.layers"``) and its length."""

    path: str
    num_layers: int

    def depth(self, name: str) -> int | None:
        """The index of the block that contains the module or tensor ``name``, or None."""
        prefix = self.path + "."
        index = name[len(prefix) :].split(".", 1)[0] if name.startswith(prefix) else ""
        return int(index) if index.isdecimal() else None


@dataclass(frozen=True)
class Layout:
    """The names, shapes and block numbers of one architecture's trainable tensors.

    Attributes
    ----------
    architecture
        The architecture's name.
    num_layers
        Number of transformer blocks.
    depth
        Index of the transformer block by name of the tensor, None for the head.
    shapes
        Shape by name of the tensor.
    buffers
        Names of those tensors that forward passes of training update instead of the optimiser, such as the running
        statistics of a normalisation.
    """

    architecture: str
    num_layers: int
    depth: Mapping[str, int | None]
    shapes: Mapping[str, tuple[int, ...]]
    buffers: frozenset[str] = frozenset()

    @property
    def head(self) -> frozenset[str]:
        """Names of the tensors outside all blocks."""
        return frozenset(name for name, layer in self.depth.items() if layer is None)

    def names(self, layers: Collection[int]) -> tuple[str, ...]:
        """Names of the tensors in the given blocks, in the layout's order, without the head."""
        chosen = set(layers)
        return tuple(name for name, layer in self.depth.items() if layer is not None and layer in chosen)


IN_MEMORY = "in-memory:"
"""Prefix of the name that represents an object in memory in a config."""
