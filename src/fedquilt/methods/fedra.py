"""FedRA: every client is assigned a new random set of layers in every round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedquilt.allocate.layers import cover, draw, odds
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, ModelState, Turn
from fedquilt.methods.layered import Weighting, layered
from fedquilt.methods.traits import Traits


def fedra(
    federation: Federation,
    *,
    drop_layers: bool = True,
    coverage: bool = False,
    weighting: Weighting = "examples",
) -> Method:
    """FedRA: client k trains ``budget`` uniformly drawn layers, and the server averages each layer over its clients.

    With ``drop_layers`` the client's model consists of only the drawn blocks, in their order, and only their adapters
    travel. Without it the client runs all blocks and everything else is the same, as in Fed-HeLLo's implementation of
    FedRA. ``coverage`` swaps layers between clients until each layer has a client.

    Paper: fedra, random-layers
    """
    layout = federation.layout
    even = odds([1] * layout.num_layers)

    def allocate(state: ModelState, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        chosen = {p.id: draw(even, p.budget.layers, turn.rng.child("layers", p.id)) for p in turn.cohort}
        return cover(chosen, layout.num_layers, turn.rng.child("coverage")) if coverage else chosen

    return layered("fedra", federation, allocate, weighting=weighting, drop_layers=drop_layers)


def traits(settings: Mapping[str, Any]) -> Traits:
    """Averaging of any tensors, with clients that may run only the drawn blocks."""
    return Traits(drops_layers=settings["drop_layers"], stateless=True)
