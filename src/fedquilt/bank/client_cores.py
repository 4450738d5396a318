"""The client's side of a shared middle: what the cores of its adapters are made of, and what goes back of them.

For layer l, from the slots G that the server sent: ``T_l = sum_j P[j, l] G_j + C_l``. The relation P, by its logits,
and the change C, 0 at first, are what is trained. The relation is the client's own, a tensor of ``memory["params"]``;
the change is lifted to the slots.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedquilt.adapters.lora.core import cores
from fedquilt.adapters.sites import Place, places_in
from fedquilt.bank.merge import slots_in
from fedquilt.bank.relation import depth_logits, depth_slots, lifted, lowered, relation, top_aligned
from fedquilt.core.factors import CORE
from fedquilt.core.method import overlay
from fedquilt.core.params import select
from fedquilt.core.types import Layout, Memory, Order, Params, Profile

RELATION = "relation"
"""The name of the relation's logits, in training and among the client's own tensors."""

_CHANGE = "change."


@dataclass(frozen=True)
class Middle:
    """What cores are made of: ``slots`` (num_slots, k) by site, and ``tensors``, what of it a client can train.

    ``tensors`` are the changes, ``change.<site>`` (num_layers, k), and the logits of the relation (num_slots,
    num_layers), ``relation``; where the relation is ``fixed``, it is that one and has no logits.
    """

    slots: Mapping[str, Tensor]
    tensors: Params
    fixed: Tensor | None
    places: Mapping[str, Place]
    rank: int

    def relation(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The relation P (num_slots, num_layers) of these values of the tensors."""
        if self.fixed is None:
            return relation(tensors[RELATION])
        return self.fixed.to(next(iter(tensors.values())).device)

    def cores(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The core of every adapted module, (r, r), of these values of the tensors; gradients go to them."""
        shares = self.relation(tensors)
        values = {
            site: lowered(slots.to(shares.device), shares) + tensors[_CHANGE + site]
            for site, slots in self.slots.items()
        }  # (num_layers, k)
        return cores(values, self.places, self.rank)

    def returned(self, tensors: Mapping[str, Tensor], layers: Collection[int]) -> tuple[Params, Tensor]:
        """The slots as these layers would have them, by site, and how much of the layers belongs to each slot.

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
    """The middle that an order brings to a client whose adapters have this rank, as its training begins.

    The relation is that of the client's memory, and at first by relative depth, ``settings["width"]`` slots wide. With
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
    """``Method.model`` of a client with this layout and rank: ``<module>.core`` lies beside the adapters, made of the
    slots that the order brings and the client's relation.

    Parameters
    ----------
    profile, initial, order, memory
        as ``Method.model`` is given them.
    layout
        where the client's tensors sit.
    rank
        of its adapters, r; a core is (r, r).
    """
    middle = middle_of(order, memory, layout, rank)
    own = select(overlay(profile, initial, order, memory), layout.depth)
    with torch.no_grad():
        made = middle.cores(middle.tensors)
    return {**own, **{f"{module}.{CORE}": core for module, core in made.items()}}
