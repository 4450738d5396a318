"""A method for one architecture, run separately in each of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby, islice
from typing import Any, TypedDict

from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker


class SeparateState(TypedDict):
    """The server's state: the method's own state for each architecture."""

    apart: dict[str, Tree]


def by_architecture(factory: Callable[[Federation], Method], federation: Federation) -> Method:
    """The method ``factory(federation.of(a))`` among the clients of each architecture a, in common exchanges.

    Each architecture has its own state, initial tensors and random streams. Architectures do not influence each other,
    and one without clients in a round is unchanged. ``settings["architecture"]`` of an order names the client's
    architecture. With one architecture the result is ``factory(federation)``.

    Replies are read once and not kept if the clients of each architecture have consecutive numbers; otherwise all are
    held until the last one has arrived.

    Raises
    ------
    ValueError
        if the methods of two architectures have different exchanges.
    """
    if len(federation.layouts) == 1:
        return factory(federation)
    methods = {name: factory(federation.of(name)) for name in federation.layouts}
    first = next(iter(methods.values()))
    for name, method in methods.items():
        if [_about(exchange) for exchange in method.exchanges] != [_about(exchange) for exchange in first.exchanges]:
            raise ValueError(f"'{method.name}' has different exchanges for {name} than for the other architectures")
    owners = {profile.id: profile.architecture for profile in federation.profiles}

    def init(rng: Rng) -> SeparateState:
        return {"apart": {name: method.init(rng.child("architecture", name)) for name, method in methods.items()}}

    def view(state: SeparateState, profile: Profile) -> Order:
        return methods[profile.architecture].view(state["apart"][profile.architecture], profile)

    def model(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
        return methods[profile.architecture].model(profile, initial, order, memory)

    def report(state: SeparateState) -> dict[str, dict[str, Any]]:
        """The reports of the architectures' methods, by key and architecture."""
        reported: dict[str, dict[str, Any]] = {}
        for name, own in state["apart"].items():
            for key, value in methods[name].report(own).items():
                reported.setdefault(key, {})[name] = value
        return reported

    exchanges = tuple(
        _joined({name: method.exchanges[number] for name, method in methods.items()}, owners)
        for number in range(len(first.exchanges))
    )
    return Method(first.name, init, exchanges, view, model=model, report=report)


def _joined(exchanges: Mapping[str, Exchange], owners: Mapping[ClientId, str]) -> Exchange:
    """The exchanges of all architectures as one; ``owners`` is the architecture of each client."""
    numbers = {name: number for number, name in enumerate(exchanges)}
    in_order = [owners[client] for client in sorted(owners)]
    neighbours = len(list(groupby(in_order))) == len(set(in_order))

    def owner(reply: Reply) -> str:
        return owners[reply.client]

    def owner_of(order: Order) -> str:
        name: str = order.settings["architecture"]
        return name

    def ask(state: SeparateState, turn: Turn) -> Mapping[ClientId, Order]:
        orders = {}
        for name, exchange in exchanges.items():
            cohort = tuple(profile for profile in turn.cohort if profile.architecture == name)
            if cohort:
                own = replace(turn, cohort=cohort, rng=turn.rng.child("architecture", name))
                for client, order in exchange.ask(state["apart"][name], own).items():
                    orders[client] = replace(order, settings={**order.settings, "architecture": name})
        return orders

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return exchanges[owner_of(order)].work(client, order, memory)

    def merge(state: SeparateState, replies: Iterable[Reply]) -> SeparateState:
        # sorting holds all replies; it is stable, so that those of an architecture stay in client order
        sequence = replies if neighbours else sorted(replies, key=lambda reply: numbers[owner(reply)])
        states = dict(state["apart"])
        for name, own in _runs(sequence, owner):
            states[name] = exchanges[name].merge(states[name], own)
        return {**state, "apart": states}

    def expects(order: Order) -> Params:
        expected = exchanges[owner_of(order)].expects
        return {} if expected is None else expected(order)

    def metrics(order: Order) -> Mapping[str, Range]:
        wanted = exchanges[owner_of(order)].metrics
        return {} if wanted is None else wanted(order)

    def ranges(order: Order) -> Mapping[str, Range]:
        within = exchanges[owner_of(order)].ranges
        return {} if within is None else within(order)

    exchange = next(iter(exchanges.values()))
    return exchange._replace(
        ask=ask,
        work=work,
        merge=merge,
        expects=None if exchange.expects is None else expects,
        metrics=None if exchange.metrics is None else metrics,
        ranges=ranges if any(own.ranges for own in exchanges.values()) else None,
        peers=owner_of,
    )


def _runs(replies: Iterable[Reply], owner: Callable[[Reply], str]) -> Iterator[tuple[str, Iterator[Reply]]]:
    """Group consecutive replies of one owner lazily: only one reply is held at a time."""
    source = iter(replies)
    ahead = [*islice(source, 1)]

    def run(name: str) -> Iterator[Reply]:
        while ahead and owner(ahead[0]) == name:
            yield ahead.pop()
            ahead.extend(islice(source, 1))

    while ahead:
        name = owner(ahead[0])
        own = run(name)
        yield name, own
        for _ in own:  # if the merge stopped early
            pass


def _about(exchange: Exchange) -> tuple[Any, ...]:
    optional = (exchange.expects, exchange.metrics)
    return exchange.name, exchange.wire, *(one is None for one in optional)
