"""FedRA: every round, every client gets a fresh random set of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedquilt.allocate.layers import cover, draw, odds
from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, layered
from fedquilt.methods.traits import Traits


def fedra(
    federation: Federation,
    *,
    drop_layers: bool = True,
    coverage: bool = False,
    weighting: Weighting = "examples",
) -> Method:
    """FedRA: client k draws ``budget`` layers, all equally likely, and the server averages each layer over its holders.

    With ``drop_layers`` the client's model is physically made of the drawn blocks alone, in their order, and only their
    adapters travel. Without it the whole backbone is run and everything else is the same, which is what Fed-HeLLo's
    code calls FedRA. ``coverage`` swaps layers until each has a client.

    Paper: fedra, random-layers
    """
    layout = federation.layout
    even = odds([1] * layout.num_layers)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        chosen = {p.id: draw(even, p.budget.layers, turn.rng.child("layers", p.id)) for p in turn.cohort}
        return cover(chosen, layout.num_layers, turn.rng.child("coverage")) if coverage else chosen

    return layered("fedra", federation, allocate, weighting=weighting, drop_layers=drop_layers)


def traits(settings: Mapping[str, Any]) -> Traits:
    """Averaging of any tensors, by clients that may run the drawn blocks alone."""
    return Traits(drops_layers=settings["drop_layers"], stateless=True)
