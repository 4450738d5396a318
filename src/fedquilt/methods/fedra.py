"""FedRA: every round, every client gets a fresh random set of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedquilt.allocate.layers import cover, draw, odds
from fedquilt.core.method import Method
from fedquilt.core.params import select
from fedquilt.core.types import ClientId, Federation, Memory, Order, Reply, Tree, Turn
from fedquilt.methods.layered import Weighting, layered


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

    trunk = layered("fedra", federation, allocate, weighting=weighting)
    if not drop_layers:
        return trunk
    fit = trunk.exchanges[0]

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        return {
            client: replace(order, params=select(order.params, {*layout.names(order.settings["layers"]), *layout.head}))
            for client, order in fit.ask(state, turn).items()
        }

    def work(client: Any, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        layers = order.settings["layers"]
        fitted = client.fit(order, memory, layers, blocks=layers)
        return Reply(client.id, fitted.params, fitted.num_examples, fitted.metrics), memory

    return trunk._replace(exchanges=(fit._replace(ask=ask, work=work),))
