"""The client's side of H2Tune's bank: the cores of its adapters, and the update of the bank that it sends.

The core of layer l is made from the slots G that the server sent: ``T_l = sum_j P[j, l] G_j + C_l``. The logits of the
relation P and the change C, 0 at first, are trained. The relation is local, a tensor of ``memory["params"]``; the
change is lifted to the slots.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedquilt.adapters.lora.core import cores, drift
from fedquilt.adapters.sites import Place, places_in
from fedquilt.bank.merge import slots_in
from fedquilt.bank.relation import depth_logits, depth_slots, lifted, lowered, relation, top_aligned
from fedquilt.core.factors import CORE
from fedquilt.core.method import overlay
from fedquilt.core.params import select
from fedquilt.core.types import Layout, Memory, Order, Params, Profile
from fedquilt.core.worker import Penalty

RELATION = "relation"
"""Name of the relation's logits, in training and among the client's local tensors."""

_CHANGE = "change."


@dataclass(frozen=True)
class Middle:
    """The tensors that a client's cores are made from.

    Attributes
    ----------
    slots
        The slots that the server sent, (num_slots, k) by site.
    tensors
        The trainable tensors: the changes ``change.<site>`` (num_layers, k), and the logits ``relation`` (num_slots,
        num_layers) unless the relation is fixed.
    fixed
        The fixed relation (num_slots, num_layers), or None.
    places
        The site and layer of each adapted module.
    rank
        The rank r of the client's adapters.
    """

    slots: Mapping[str, Tensor]
    tensors: Params
    fixed: Tensor | None
    places: Mapping[str, Place]
    rank: int

    def relation(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The relation P (num_slots, num_layers) for these values of the trainable tensors."""
        if self.fixed is None:
            return relation(tensors[RELATION])
        return self.fixed.to(next(iter(tensors.values())).device)

    def cores(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The core (r, r) of every adapted module for these values of the trainable tensors, differentiable in them."""
        shares = self.relation(tensors)
        values = {
            site: lowered(slots.to(shares.device), shares) + tensors[_CHANGE + site]
            for site, slots in self.slots.items()
        }  # (num_layers, k)
        return cores(values, self.places, self.rank)

    def anchor(self, strength: float) -> Penalty:
        """The penalty on the drift of the cores from those at the start of training, times ``strength``."""

        def penalty(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
            return strength * drift(self.cores(trained), self.cores(start))

        return penalty

    def returned(self, tensors: Mapping[str, Tensor], layers: Collection[int]) -> tuple[Params, Tensor]:
        """The slots with the changes of these layers, by site, and the coverage: the share of the layers in each slot.

        ``G_j + sum_l P[j, l] C_l / sum_l P[j, l]`` and ``sum_l P[j, l]``, over these layers.
        """
        chosen = sorted(layers)
        shares = self.relation(tensors)[:, chosen]
        slots = {
            site: sent.to(shares.device) + lifted(tensors[_CHANGE + site][chosen], shares)
            for site, sent in self.slots.items()
        }
        return slots, shares.sum(1)


def middle_of(order: Order, memory: Memory, layout: Layout, rank: int) -> Middle:
    """The ``Middle`` of a client with adapters of this rank, from an order, at the start of its training.

    The relation is that of the client's memory, and initially by relative depth, ``settings["width"]`` slots wide. With
    ``settings["relation"]`` ``"top"`` or ``"slots"`` it is fixed; see ``bank.relation``.
    """
    slots = slots_in(order.params)
    first = next(iter(slots.values()))
    shape, device = (layout.num_layers, len(first)), first.device
    kind = order.settings["relation"]
    fixed = None if kind == "learned" else {"top": top_aligned, "slots": depth_slots}[kind](*shape).to(device)
    tensors = {_CHANGE + site: first.new_zeros(layout.num_layers, sent.shape[1]) for site, sent in slots.items()}
    if fixed is None:
        own = memory.get("params", {}).get(RELATION)
        tensors[RELATION] = (depth_logits(*shape, order.settings["width"]) if own is None else own).to(device)
    return Middle(slots, tensors, fixed, places_in(layout), rank)


def model_with_cores(
    profile: Profile, initial: Params, order: Order, memory: Memory, *, layout: Layout, rank: int
) -> Params:
    """``Method.model`` of a client with this layout and rank, with a ``<module>.core`` for every adapter.

    The cores are made from the order's slots and the client's relation.

    Parameters
    ----------
    profile, initial, order, memory
        As for ``Method.model``.
    layout
        The client's layout.
    rank
        The rank r of its adapters; a core is (r, r).
    """
    middle = middle_of(order, memory, layout, rank)
    own = select(overlay(profile, initial, order, memory), layout.depth)
    with torch.no_grad():
        made = middle.cores(middle.tensors)
    return {**own, **{f"{module}.{CORE}": core for module, core in made.items()}}
