"""The server's view of one federation, which a method is made for, and how its run file has replies combined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from fedquilt.core.factors import Factors, Product
from fedquilt.core.rng import Rng
from fedquilt.core.server import ServerModel
from fedquilt.core.types import Layout, Params, Profile, Reply
from fedquilt.core.vertical import Vertical
from fedquilt.core.worker import Worker

Aggregate = Callable[[Mapping[str, Tensor], Iterable[Reply], str], Params]
"""``aggregate(base, replies, weighting)``: the server's tensors after a round."""

Scaling = Callable[[str, int], float]
"""The scale of the adapter at this module path with this rank: the factor of its product ``B A``."""


class Combined(NamedTuple):
    """The result of a rule for one module.

    ``pair`` holds the server's new factors, in the server's scale (None: unchanged), ``change`` is added to the base,
    and ``carried`` is kept for the next round.
    """

    pair: Product | None
    change: Product | None = None
    carried: Product | None = None


class Rule(NamedTuple):
    """A rule that combines the clients' adapters, see ``aggregate.lowrank.rules``.

    Attributes
    ----------
    name
        The rule's name in run files.
    combine
        ``combine(base, clients, carried)`` combines one module: the server's factors, the clients' as they sent them,
        and ``Combined.carried`` of the round before.
    one_rank
        Whether all clients must have the same rank.
    fresh
        Whether clients start every round with a fresh adapter and are sent none.
    changes_base
        Whether results may have a ``change``.
    weigh
        Gives the clients' weights from their modules; None for numbers of examples.
    unsteady
        Why a server optimiser cannot accumulate the steps of the factors over rounds; empty if it can.
    averages
        Whether it only averages factors, so that DoRA's magnitudes can be averaged beside them.
    """

    name: str
    combine: Callable[[Factors, Sequence[Factors], Product | None], Combined]
    one_rank: bool = False
    fresh: bool = False
    changes_base: bool = False
    weigh: Callable[[Sequence[Sequence[Factors]]], list[float]] | None = None
    unsteady: str = ""
    averages: bool = False


class Public(NamedTuple):
    """What a client of one architecture says of public inputs, as meta tensors: shapes without values.

    Attributes
    ----------
    bases : the bases of its features, by ``basis.<place>``, see ``aggregate.axes.basis``; or what it says as the anchor
        by these and longer names, see ``aggregate.anchor``.
    seen : its common coordinates of held-out inputs, by ``seen.<place>``.
    anchored : whether the smallest architecture gives the common coordinates, instead of all together.
    """

    bases: Params
    seen: Params
    anchored: bool = False


@dataclass(frozen=True)
class Federation:
    """The argument of a method's factory: the server's view of one federation.

    ``layout``, ``scaling`` and ``proxy`` are those of the only architecture; a method that shares tensors across
    architectures reads them by architecture instead.

    Attributes
    ----------
    profiles
        The profiles of all clients.
    layouts
        Layout by architecture.
    initial
        ``initial[architecture](rng)`` makes the adapters and the head that training starts from.
    rounds
        Number of rounds of the run.
    scalings
        ``scalings[architecture](module, rank)`` is the factor of the product ``B A`` of the adapter at this module
        path. An architecture without low-rank factors needs none.
    proxies
        Clients of the server's own by architecture, whose data are the proxy set; only where there is one.
    aggregate
        How layered methods combine replies; None for the layer-wise mean.
    rule
        How layered methods combine adapters; None: like other tensors.
    frozen
        Names of the tensors of a layout that its clients use and never train, by architecture.
    local_steps
        ``local_steps(profile)`` is the number of optimiser steps of one local training of this client.
    public
        What clients say of public inputs, by architecture; empty without adapters in common coordinates.
    server
        The server's own model and data; None without ``[server]``.
    vertical
        The active party of a vertical federation; None in any other.
    """

    profiles: tuple[Profile, ...]
    layouts: Mapping[str, Layout]
    initial: Mapping[str, Callable[[Rng], Params]]
    rounds: int
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    proxies: Mapping[str, Worker] = field(default_factory=dict)
    aggregate: Aggregate | None = None
    rule: Rule | None = None
    frozen: Mapping[str, frozenset[str]] = field(default_factory=dict)
    local_steps: Callable[[Profile], int] | None = None
    public: Mapping[str, Public] = field(default_factory=dict)
    server: ServerModel | None = None
    vertical: Vertical | None = None

    def of(self, architecture: str) -> Federation:
        """The federation of the clients of this architecture alone.

        Raises
        ------
        KeyError
            if there is no such architecture.
        """
        return replace(
            self,
            profiles=tuple(profile for profile in self.profiles if profile.architecture == architecture),
            layouts={architecture: self.layouts[architecture]},
            initial={architecture: self.initial[architecture]},
            scalings={name: scaling for name, scaling in self.scalings.items() if name == architecture},
            proxies={name: proxy for name, proxy in self.proxies.items() if name == architecture},
            frozen={name: names for name, names in self.frozen.items() if name == architecture},
            public={name: public for name, public in self.public.items() if name == architecture},
        )

    @property
    def layout(self) -> Layout:
        """The layout of a federation with one architecture.

        Raises
        ------
        ValueError
            if there is more than one architecture.
        """
        (layout,) = self.layouts.values()
        return layout

    @property
    def scaling(self) -> Scaling:
        """The scaling in a federation with one architecture; 1 for adapters that have none.

        Raises
        ------
        ValueError
            if there is more than one architecture.
        """
        return self.scalings.get(self.layout.architecture, _unscaled)

    @property
    def proxy(self) -> Worker | None:
        """The server's own client in a federation with one architecture, None if the server has no proxy set.

        Raises
        ------
        ValueError
            if there is more than one architecture.
        """
        return self.proxies.get(self.layout.architecture)


def _unscaled(module: str, rank: int) -> float:
    return 1.0
