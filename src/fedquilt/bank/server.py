"""The server's side of H2Tune's bank: what each client is sent of it, and the bank after a round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from fedquilt.bank.alignment import BankMerge
from fedquilt.bank.client_cores import Middle, middle_of, model_with_cores
from fedquilt.bank.geometry import Geometry
from fedquilt.bank.merge import COVERAGE, BankUpdate, at_most, drawn_bank, offered, slots_in, to_params
from fedquilt.bank.relation import depth_logits, relation
from fedquilt.bank.selection import Selection
from fedquilt.core.errors import RoundError
from fedquilt.core.params import without
from fedquilt.core.rng import Rng
from fedquilt.core.types import Memory, ModelState, Order, Params, Profile, Range, Reply, Tree


class BankState(ModelState):
    """The server's state: the bank is ``params``, and the merge may have entries of its own (``BankMerge.init``).

    Attributes
    ----------
    round
        Number of finished rounds.
    selection
        What ``Selection`` keeps, which depends on its kind.
    """

    round: int
    selection: Tree


@dataclass(frozen=True)
class BankServer:
    """A server that keeps a bank; its methods are functions of ``core.method.Method`` and ``core.method.Exchange``.

    Attributes
    ----------
    shape
        The size of the bank, and of each client's part of it.
    choice
        How a client's entries are selected.
    merging
        How updates are merged.
    alignment, width
        The kind of relation between a client's layers and the slots, and its initial width, see ``bank.client_cores``.
    deviation
        The standard deviation of the initial bank.
    """

    shape: Geometry
    choice: Selection
    merging: BankMerge
    alignment: str
    width: float
    deviation: float

    def drawn(self, rng: Rng, deviation: float = 1.0) -> Params:
        """A bank of normal numbers with this standard deviation."""
        return drawn_bank(self.shape.every_site, self.shape.num_slots, self.shape.size, rng, deviation)

    def init(self, rng: Rng) -> BankState:
        """The initial state."""
        first = self.drawn(rng.child("bank"), self.deviation)
        return {"params": first, "round": 0, "selection": self.choice.init(rng, first), **self.merging.init(rng)}

    def order(self, state: BankState, profile: Profile, *, joint: bool) -> Order:
        """The client's entries of the bank, and the coverage of a relation by relative depth.

        With ``joint`` the client trains all tensors at once.
        """
        depth, layers = self.shape.layout(profile).num_layers, self.shape.trained_layers(profile)
        by_depth = relation(depth_logits(depth, self.shape.num_slots, self.width)).sum(1)
        settings = {"layers": layers, "joint": joint, "relation": self.alignment, "width": self.width}
        sent = to_params(offered(state["params"], self._entries(state, profile)), by_depth)
        return Order(sent, {**settings, "architecture": profile.architecture})

    def middle(self, profile: Profile, order: Order, memory: Memory) -> Middle:
        """The tensors that the client's cores are made from, at the start of its training."""
        return middle_of(order, memory, self.shape.layout(profile), self.shape.rank(profile))

    def private(self, order: Order) -> frozenset[str]:
        """The tensors that a client trains and keeps besides its relation: A and B of the order's layers, and head."""
        layout = self.shape.layouts[order.settings["architecture"]]
        return frozenset({*layout.names(order.settings["layers"]), *layout.head})

    def merge(self, state: BankState, replies: Iterable[Reply]) -> BankState:
        """The state after a round."""

        def updates() -> Iterator[tuple[str, BankUpdate]]:
            for reply in replies:
                profile = self.shape.profiles[reply.client]
                entries, layers = self._entries(state, profile), self.shape.trained_layers(profile)
                yield profile.architecture, _update(reply, entries, len(layers))

        merged, number = self.merging.merge(state, updates()), state["round"] + 1
        kept = self.choice.after(state["selection"], merged["params"], number)
        return {**state, **merged, "round": number, "selection": kept}

    def model(self, profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
        """The client's own adapters and head, and cores from the order's slots and the client's relation."""
        layout, rank = self.shape.layout(profile), self.shape.rank(profile)
        return model_with_cores(profile, initial, order, memory, layout=layout, rank=rank)

    def expects(self, order: Order) -> Params:
        """The tensors of a reply: those of the order that are not the client's own."""
        return without(order.params, self.shape.layouts[order.settings["architecture"]].depth)

    def ranges(self, order: Order) -> dict[str, Range]:
        """The range of the coverage: a layer's shares sum to 1, and rounding on the wire adds less than one layer."""
        return {COVERAGE: Range(-1.0, len(order.settings["layers"]) + 1.0)}

    def _entries(self, state: BankState, profile: Profile) -> dict[str, Tensor]:
        """The entries of the bank that a client works with, by site."""
        return self.choice.entries(state["selection"], profile.id, self.shape.width(profile), self.shape.sites(profile))


def _update(reply: Reply, entries: dict[str, Tensor], num_layers: int) -> BankUpdate:
    """What a client that trained so many layers wants of its entries of the bank.

    Raises
    ------
    RoundError
        if the reply lacks the coverage of the slots.
    """
    if COVERAGE not in reply.params:
        raise RoundError(f"client {reply.client} sent no tensor '{COVERAGE}'")
    coverage = at_most(reply.params[COVERAGE], num_layers)
    return BankUpdate(reply.client, slots_in(reply.params), entries, coverage, reply.weight)
