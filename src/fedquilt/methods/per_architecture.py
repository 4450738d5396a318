"""Tensors that the server keeps for each architecture: their names, and their mean over its clients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypedDict

from fedquilt.aggregate.mean import RunningMean
from fedquilt.bank.geometry import rank_of
from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select, without
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Layout, Memory, Order, Params, Profile, Reply, Turn
from fedquilt.core.worker import Worker


class EndsState(TypedDict):
    """What ``with_common_ends`` adds to a state: the tensors that are averaged within each architecture.

    They bear the names that ``placed`` gives.
    """

    ends: Params


def placed(architecture: str, name: str) -> str:
    """The name under which the server keeps a tensor of one architecture."""
    return f"{architecture}/{name}"


def with_common_ends(method: Method, federation: Federation) -> Method:
    """The method whose clients average the otherwise local tensors of their layout within each architecture.

    The reverse of ``core.wrap.with_local``: the trained tensors of a client's layout are part of its reply instead of
    ``memory["params"]``, and every order holds the architecture's mean, weighted by examples. ``settings["layers"]`` of
    an order are the trained layers.

    Raises
    ------
    ConfigError
        if a client's rank differs from that of its architecture.
    """
    _check_ranks(federation)
    layouts = federation.layouts
    owners = {profile.id: profile.architecture for profile in federation.profiles}

    def layout_of(client: ClientId) -> Layout:
        return layouts[owners[client]]

    def init(rng: Rng) -> EndsState:
        made = {own: start(rng) for own, start in federation.initial.items()}
        ends = {placed(own, name): tensor for own, params in made.items() for name, tensor in params.items()}
        return {**method.init(rng), "ends": ends}

    def joined(state: EndsState, order: Order, own: str) -> Order:
        ends = {name: state["ends"][placed(own, name)] for name in layouts[own].depth}
        return replace(order, params={**order.params, **ends})

    def view(state: EndsState, profile: Profile) -> Order:
        return joined(state, method.view(state, profile), profile.architecture)

    def averaging(exchange: Exchange) -> Exchange:
        def ask(state: EndsState, turn: Turn) -> Mapping[ClientId, Order]:
            orders = exchange.ask(state, turn)
            return {client: joined(state, order, owners[client]) for client, order in orders.items()}

        def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
            reply, after = exchange.work(client, order, memory)
            trained = select(after.get("params", {}), layout_of(client.id).depth)
            kept = without(after.get("params", {}), trained)
            return replace(reply, params={**reply.params, **trained}), {**after, "params": kept}

        def merge(state: EndsState, replies: Iterable[Reply]) -> EndsState:
            mean = RunningMean(state["ends"])

            def without_ends() -> Iterator[Reply]:
                for reply in replies:
                    ends = select(reply.params, layout_of(reply.client).depth)
                    named = {placed(owners[reply.client], name): tensor for name, tensor in ends.items()}
                    mean.add(replace(reply, params=named))
                    yield replace(reply, params=without(reply.params, ends))

            return {**exchange.merge(state, without_ends()), "ends": mean.result()}

        def expects(order: Order) -> Params:
            layout = layouts[order.settings["architecture"]]
            trained = {*layout.names(order.settings["layers"]), *layout.head}
            inner = {} if exchange.expects is None else exchange.expects(order)
            return {**inner, **select(order.params, trained)}

        return exchange._replace(ask=ask, work=work, merge=merge, expects=expects)

    exchanges = tuple(averaging(exchange) for exchange in method.exchanges)
    return method._replace(init=init, exchanges=exchanges, view=view)


def _check_ranks(federation: Federation) -> None:
    """Raise ConfigError if a client's rank differs from that of its architecture, as a mean needs equal ranks."""
    for profile in federation.profiles:
        layout = federation.layouts[profile.architecture]
        own, rank = rank_of(layout, None), rank_of(layout, profile.budget.rank)
        if rank != own:
            raise ConfigError(
                f"method.ends = 'architecture': client {profile.id} has rank {rank} and its architecture {own}, but a "
                "mean needs equal ranks; set adapter.rank instead of rank in the groups, or method.ends = 'private'"
            )
