"""The trunk of every method in which each client trains some layers' adapters and the server averages them layer by
layer.

Such a method is its ``allocation``: who trains which layers this round. What it leaves out sits the round out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Federation, Memory, Order, Params, Profile, Reply, Tree, Turn

Allocation = Callable[[Tree, Turn], Mapping[ClientId, tuple[int, ...]]]
Weighting = Literal["examples", "uniform"]


def layered(name: str, federation: Federation, allocation: Allocation, *, weighting: Weighting = "examples") -> Method:
    """The method in which client k trains the layers ``allocation(state, turn)[k]`` and the head, for all architectures
    alike.

    Everybody receives all adapters, which the forward pass needs, and sends back what it trained. The state holds
    ``params``; a method with more in its state wraps ``init`` and ``merge``. The server averages by layer, or by the
    federation's own rule.
    """
    layout = federation.layout
    aggregate = federation.aggregate or layerwise_mean

    def init(rng: Rng) -> Tree:
        return {"params": federation.initial[layout.architecture](rng)}

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        return {
            client: Order(state["params"], {"layers": list(layers)})
            for client, layers in allocation(state, turn).items()
        }

    def work(client: Any, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        fitted = client.fit(order, memory, order.settings["layers"])
        return Reply(client.id, fitted.params, fitted.num_examples, fitted.metrics), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        return {**state, "params": aggregate(state["params"], replies, weighting)}

    def expects(order: Order) -> Params:
        return select(order.params, {*layout.names(order.settings["layers"]), *layout.head})

    def view(state: Tree, profile: Profile) -> Order:
        return Order(state["params"])

    return Method(name, init, (Exchange("fit", ask, work, merge, expects),), view)
