"""The words of the contract between a server, its clients and a method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from fedquilt.core.rng import Rng

Params = dict[str, Tensor]
"""Trainable tensors by name; never the frozen base."""

ClientId = int
"""Partition number ``0..n-1``; never a transport's node number."""

Tree = Any
"""Nested dicts (with string keys) and lists of tensors, numbers, strings, booleans and None. A server's state and a
client's memory are trees, so that one checkpoint format serves every method."""

Memory = dict[str, Any]
"""A client's private tree. It never travels. By convention ``memory["params"]`` holds the client's own part of the
model, which lies over whatever the server sends, in training and in evaluation, and ``memory["base"]`` what methods
that change the base have merged into it."""


class Range(NamedTuple):
    """The numbers from ``low`` to ``high``, both ends among them; only integers if ``whole``."""

    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True)
class Budget:
    """What a client can afford: ``layers``, the number of blocks whose adapters it can train, and the ``rank`` of its
    adapters, None for the layout's."""

    layers: int
    rank: int | None = None


@dataclass(frozen=True)
class Profile:
    """What the server may know of a client.

    Clients of one ``architecture`` have the same tensors: its name stands for one layout on one base. ``group`` is the
    label of the client's group, if the federation has groups.
    """

    id: ClientId
    num_examples: int
    architecture: str
    budget: Budget
    task: str
    group: str = ""


@dataclass(frozen=True)
class Order:
    """What the server sends to one client.

    A method fills ``params`` and ``settings`` (numbers, strings, lists of them); the loop stamps ``round`` and ``rng``.
    """

    params: Params
    settings: Mapping[str, Any] = field(default_factory=dict)
    round: int = 0
    rng: Rng = Rng(0)  # noqa: RUF009  (a stream is a value)


@dataclass(frozen=True)
class Reply:
    """What one client sends back; everything in it crosses the network. ``weight`` is in examples, above zero.

    The loop stamps ``round``, that of the order which is answered: an old reply that is sent again shows.
    """

    client: ClientId
    params: Params
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    round: int = 0


@dataclass(frozen=True)
class Failure:
    """A client that sent no usable reply, and why."""

    client: ClientId
    reason: str


@dataclass(frozen=True)
class Turn:
    """What ``ask`` may look at besides the state: the round's number, its cohort and its random stream.

    ``rng`` is the same for every exchange of a round; a method takes a named child for each thing it draws.
    """

    round: int
    cohort: tuple[Profile, ...]
    rng: Rng


@dataclass(frozen=True)
class Blocks:
    """The list of transformer blocks of a model: its module path (``"vit.layers"``) and its length."""

    path: str
    num_layers: int

    def depth(self, name: str) -> int | None:
        """The index of the block that the module or tensor ``name`` lies in, or None; layer 1 is never layer 10."""
        prefix = self.path + "."
        index = name[len(prefix) :].split(".", 1)[0] if name.startswith(prefix) else ""
        return int(index) if index.isdecimal() else None


@dataclass(frozen=True)
class Layout:
    """Where the trainable tensors of one architecture sit.

    ``depth`` maps the name of every trainable tensor to the index of its transformer block, or None for the head.
    ``shapes`` maps the same names to shapes. ``buffers`` are those of them that no optimiser moves: what a forward pass
    in training writes down, such as the running statistics of a normalisation.
    """

    architecture: str
    num_layers: int
    depth: Mapping[str, int | None]
    shapes: Mapping[str, tuple[int, ...]]
    buffers: frozenset[str] = frozenset()

    @property
    def head(self) -> frozenset[str]:
        """Names of the tensors that belong to no block."""
        return frozenset(name for name, layer in self.depth.items() if layer is None)

    def names(self, layers: Collection[int]) -> tuple[str, ...]:
        """Names of the tensors in the given blocks, in the layout's order; the head is not among them."""
        chosen = set(layers)
        return tuple(name for name, layer in self.depth.items() if layer is not None and layer in chosen)


Aggregate = Callable[[Mapping[str, Tensor], Iterable[Reply], str], Params]


@dataclass(frozen=True)
class Federation:
    """What a method's factory is given: the server's side of one federation.

    ``layouts`` and ``initial`` are by architecture; ``initial[architecture](rng)`` makes the adapters and head that
    training starts from. ``server`` is a client of the server's own (a model with a proxy set as its data), or None.
    ``aggregate(base, replies, weighting)`` is the rule by which layered methods make one set of tensors of many, if it
    is not the plain layer-wise mean; ``rule`` is the one by which they combine adapters, a value of
    ``aggregate.lowrank.rules``, if it is not that of other tensors. ``scaling(module, rank)`` is the factor of the
    product
    ``B A`` of an adapter at this module path with this rank. Where there are several architectures, ``servers`` and
    ``scalings`` hold the server's clients and these factors by architecture, as far as there are any; see ``of``.
    ``frozen`` are, by architecture, tensors of its layout that its clients use and never train.
    ``local_steps(profile)``, if given, is the number of optimiser steps of one training of a client of this profile.
    """

    profiles: tuple[Profile, ...]
    layouts: Mapping[str, Layout]
    initial: Mapping[str, Callable[[Rng], Params]]
    rounds: int
    server: Any = None
    aggregate: Aggregate | None = None
    scaling: Callable[[str, int], float] = lambda module, rank: 1.0
    rule: Any = None
    servers: Mapping[str, Any] = field(default_factory=dict)
    scalings: Mapping[str, Callable[[str, int], float]] = field(default_factory=dict)
    frozen: Mapping[str, frozenset[str]] = field(default_factory=dict)
    local_steps: Callable[[Profile], int] | None = None

    def of(self, architecture: str) -> Federation:
        """The part of the federation that has this architecture, as if there were no other clients.

        Raises
        ------
        KeyError
            if there is no such architecture.
        """
        alone = len(self.layouts) == 1
        return replace(
            self,
            profiles=tuple(profile for profile in self.profiles if profile.architecture == architecture),
            layouts={architecture: self.layouts[architecture]},
            initial={architecture: self.initial[architecture]},
            server=self.server if alone else self.servers.get(architecture),
            scaling=self.scaling if alone else self.scalings.get(architecture, self.scaling),
            servers={},
            scalings={},
            frozen={name: names for name, names in self.frozen.items() if name == architecture},
        )

    @property
    def layout(self) -> Layout:
        """The layout, where all clients share one architecture.

        Raises
        ------
        ValueError
            if there is more than one architecture.
        """
        (layout,) = self.layouts.values()
        return layout


IN_MEMORY = "in-memory:"
"""How the name begins that stands in a config for an object of the calling program."""
