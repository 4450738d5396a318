"""SCAFFOLD for fedquilt: local steps corrected by control variates, which clients keep as private memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedquilt.aggregate.mean import RunningMean
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.params import without
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Factor
from fedquilt.core.types import ClientId, Memory, ModelState, Order, Params, Profile, Reply, Turn
from fedquilt.core.worker import Worker
from fedquilt.methods.layered import common_layers, everyone, layered
from fedquilt.methods.registry import Entry
from fedquilt.methods.traits import Traits

PREFIX = "control/"
"""Before the name of a tensor whose control variate travels."""

TRAITS = Traits(merge="own")


class ScaffoldState(ModelState):
    """The server's state; ``control`` is c by name of the tensor."""

    control: Params


def scaffold(federation: Federation, *, learning_rate: Factor = 0.05) -> Method:
    """Client k steps by ``g - c_k + c``; then ``c_k <- c_k - c + (x - y_k) / (K eta)``, and c follows the mean of all.

    Everybody trains the layers that every client affords; each client counts once.

    Parameters
    ----------
    federation : the server's side of the federation.
    learning_rate : eta, the learning rate of local training.
    """
    layout = federation.layout
    corrected = frozenset(layout.depth) - layout.head - layout.buffers
    layers = common_layers(federation, "inverted-triangle")
    trunk = layered("scaffold", federation, everyone(layers), weighting="uniform")
    (fit,) = trunk.exchanges
    num_clients = len(federation.profiles)

    def init(rng: Rng) -> ScaffoldState:
        state: ModelState = trunk.init(rng)
        return {**state, "control": {name: torch.zeros_like(state["params"][name]) for name in sorted(corrected)}}

    def ask(state: ScaffoldState, turn: Turn) -> Mapping[ClientId, Order]:
        sent = {PREFIX + name: tensor for name, tensor in state["control"].items()}
        orders = fit.ask(state, turn)
        return {client: replace(order, params={**order.params, **sent}) for client, order in orders.items()}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        common = controls(order.params)
        own = memory.get("control") or {name: torch.zeros_like(tensor) for name, tensor in common.items()}

        def correction(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
            # its gradient is c - c_k
            terms = [((common[n] - own[n]).to(x) * x).sum() for n, x in trained.items() if n in common]
            return torch.stack(terms).sum()

        plain = uncontrolled(order)
        reply, memory = fit.work(client.penalised(correction), plain, memory)
        span = max(1.0, reply.metrics.get("steps", 1.0)) * learning_rate
        moved = {
            name: own[name] - common[name] + (plain.params[name] - tensor) / span
            for name, tensor in reply.params.items()
            if name in common
        }
        # what goes up is c, changed by what c_k changed
        change = {PREFIX + name: common[name] + (new - own[name]) for name, new in moved.items()}
        return replace(reply, params={**reply.params, **change}), {**memory, "control": {**own, **moved}}

    def merge(state: ScaffoldState, replies: Iterable[Reply]) -> ScaffoldState:
        mean, count = RunningMean(state["control"], "uniform"), 0

        def trained() -> Iterator[Reply]:
            nonlocal count
            for reply in replies:
                count += 1
                mean.add(replace(reply, params=controls(reply.params)))
                yield replace(reply, params=without(reply.params, names_of(reply.params)))

        after: ModelState = fit.merge(state, trained())
        share, proposed = count / num_clients, mean.result()
        control = {name: old + share * (proposed[name] - old) for name, old in state["control"].items()}
        return {**after, "control": control}

    def expects(order: Order) -> Params:
        wanted = fit.expects(uncontrolled(order))
        return {**wanted, **{PREFIX + name: order.params[PREFIX + name] for name in wanted if name in corrected}}

    def model(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
        return trunk.model(profile, initial, uncontrolled(order), memory)

    exchange = fit._replace(ask=ask, work=work, merge=merge, expects=expects)
    return trunk._replace(init=init, exchanges=(exchange,), model=model)


def names_of(params: Mapping[str, Tensor]) -> list[str]:
    """The names under which control variates travel."""
    return [name for name in params if name.startswith(PREFIX)]


def controls(params: Mapping[str, Tensor]) -> Params:
    """The control variates among tensors, by the names of what they are of."""
    return {name.removeprefix(PREFIX): params[name] for name in names_of(params)}


def uncontrolled(order: Order) -> Order:
    """The order without control variates."""
    return replace(order, params=without(order.params, names_of(order.params)))


ENTRY = Entry(scaffold, TRAITS)
"""What the entry point offers."""
