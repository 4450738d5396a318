"""What the active party relays between parties: embeddings of aligned rows, and tensors of the joint model.

A party is told what the others embedded in the round before, so that an embedding that it learns from is one round old.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from fedquilt.core.types import ClientId, Order, Params
from fedquilt.data.table import Columns, take
from fedquilt.vertical.joint import stacked_parties
from fedquilt.vertical.lesson import Facts

OTHERS, SHOWN = "others", "shown"
"""The names of the others' embeddings in an order, and of the numbers of their rows among its settings."""
JOINT = "joint."
"""What stands before the name of a tensor of the joint model that parties train."""


class Relay(TypedDict):
    """The numbers of aligned rows, (n,), and what all parties made of them, (n, K, m); zeros for a missing party."""

    rows: Tensor
    embeddings: Tensor


def relay_of(rows: Tensor, passive: int, received: Mapping[ClientId, Tensor], own: Tensor) -> Relay:
    """What to relay in the next round.

    Parameters
    ----------
    rows
        The numbers of the aligned rows, (n,).
    passive
        The number of passive parties.
    received, own
        The unit embeddings of the passive parties that replied and of the active one, (n, m).
    """
    parts = stacked_parties([*(received.get(id) for id in range(passive)), own], own)
    return Relay(rows=rows, embeddings=parts.permute(1, 0, 2).contiguous())


def others(relay: Relay, place: ClientId) -> Tensor:
    """What all parties but one embedded, (n, K - 1, m); ``place`` is -1 for the active party."""
    parts = relay["embeddings"]
    place %= parts.shape[1]
    return torch.cat([parts[:, :place], parts[:, place + 1 :]], 1)


def with_relayed(order: Order, relay: Relay | None, party: ClientId) -> Order:
    """The order with what the other parties embedded; unchanged in the first round."""
    if relay is None:
        return order
    down = {**order.params, OTHERS: others(relay, party)}
    return Order(down, {**order.settings, SHOWN: relay["rows"].tolist()})


def facts_of(rows: Columns, told: Tensor) -> Facts:
    """The facts of a party's aligned ``rows``, in the order of what it was ``told`` of the others' embeddings."""
    return Facts(rows, told, torch.zeros(len(told), dtype=torch.long))


def own_facts(relay: Relay | None, aligned: Columns) -> Facts | None:
    """The facts that the active party has, of all of its ``aligned`` rows; None in the first round."""
    return None if relay is None else facts_of(take(aligned, relay["rows"]), others(relay, -1))


def shared_of(tensors: Params, names: Sequence[str]) -> Params:
    """The tensors of the joint model that parties train, under the names with which they travel."""
    return {JOINT + name: tensors[name] for name in names}


def averaged(copies: Iterable[tuple[Params, float]], names: Sequence[str]) -> Params:
    """The mean of all parties' copies of the tensors named, weighted by their numbers of rows."""
    held = list(copies)
    total = sum(weight for _, weight in held)
    return {name: torch.stack([one[JOINT + name] * (weight / total) for one, weight in held]).sum(0) for name in names}


def joint_tensors(tensors: Params) -> Params:
    """Those of the tensors that belong to the joint model."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(JOINT)}
