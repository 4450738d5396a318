"""Wrappers, which change one behaviour of any method: local tensors, and scores of received models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select, without
from fedquilt.core.types import ClientId, Memory, Order, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker

SCORES = {
    "loss": Range(0.0, 1e30),
    "accuracy": Range(0.0, 1.0),
    "examples": Range(0.0, 2.0**48, whole=True),
}
"""Metrics of a client that evaluates a model on its own test rows, and their ranges."""


def with_local(method: Method, names: Collection[str]) -> Method:
    """The method with the tensors ``names`` local to each client: they are trained, and never travel either way.

    A client's own copy is in ``memory["params"]``; before its first training it uses the initial tensors.
    """
    kept = frozenset(names)

    def keep(exchange: Exchange) -> Exchange:
        def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
            return {client: _stripped(order) for client, order in exchange.ask(state, turn).items()}

        def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
            reply, memory = exchange.work(client, order, memory)
            own = {**memory.get("params", {}), **select(reply.params, kept)}
            return replace(reply, params=without(reply.params, kept)), {**memory, "params": own}

        return exchange._replace(ask=ask, work=work)

    def view(state: Tree, profile: Profile) -> Order:
        return _stripped(method.view(state, profile))

    def _stripped(order: Order) -> Order:
        return replace(order, params=without(order.params, kept))

    return method._replace(exchanges=tuple(keep(exchange) for exchange in method.exchanges), view=view)


def with_received_scores(method: Method) -> Method:
    """The method whose clients evaluate each received model on their own test rows before they train it.

    Loss, accuracy and examples are metrics of the first exchange's reply, as ``received_loss`` and so on; training is
    unchanged. Orders of a ``partial`` exchange are not a whole model and are not evaluated. After the last round every
    client evaluates its final model in a closing exchange.
    """
    inner, *rest = method.exchanges
    asked = inner.metrics

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        scores = client.evaluate(order, memory)
        reply, memory = inner.work(client, order, memory)
        return replace(reply, metrics={**reply.metrics, **_received(scores)}), memory

    def metrics(order: Order) -> dict[str, Range]:
        return {**(asked(order) if asked else {}), **_received(SCORES)}

    first = inner if inner.partial else inner._replace(work=work, metrics=None if asked is None else metrics)
    return method._replace(exchanges=(first, *rest), closing=(*method.closing, _scoring(method.view)))


def _received(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {f"received_{name}": value for name, value in scores.items()}


def _scoring(view: Callable[[Tree, Profile], Order]) -> Exchange:
    """The exchange in which each client evaluates its current model on its own test rows; the state is unchanged."""

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        return {profile.id: view(state, profile) for profile in turn.cohort}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return Reply(client.id, {}, 1.0, client.evaluate(order, memory)), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        return state

    return Exchange("score", ask, work, merge, expects=lambda order: {}, metrics=lambda order: SCORES)
