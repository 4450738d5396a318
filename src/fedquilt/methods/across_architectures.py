"""Tensors that all architectures share, beside any method that runs separately in each of them.

``split`` divides a federation into the tensors that are shared and the rest. ``mean_of`` averages the shared ones over
all clients that trained them, and ``with_shared`` joins this mean to a method for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select, without
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Layout, Memory, ModelState, Order, Params, Profile, Reply, Tree, Turn
from fedquilt.core.worker import Worker


class SharedState(TypedDict):
    """What ``with_shared`` adds to a state: that of the method which averages the shared tensors."""

    shared: Tree


def split(federation: Federation, names: Collection[str]) -> tuple[Federation, Federation]:
    """The federation without the tensors ``names``, and with them alone."""
    shared = frozenset(names)
    return _only(federation, lambda name: name not in shared), _only(federation, shared.__contains__)


def mean_of(federation: Federation, weighting: str) -> Method:
    """The method that averages every tensor over the clients that trained it, whatever their architecture.

    A tensor bears the same name, and has the same shape, in each architecture that holds it. Clients train it in the
    exchange of another method, to which ``with_shared`` joins this one.
    """
    aggregate = federation.aggregate or layerwise_mean

    def init(rng: Rng) -> ModelState:
        return {"params": {name: own for start in federation.initial.values() for name, own in start(rng).items()}}

    def view(state: ModelState, profile: Profile) -> Order:
        return Order({name: state["params"][name] for name in federation.layouts[profile.architecture].depth})

    def ask(state: ModelState, turn: Turn) -> Mapping[ClientId, Order]:
        return {profile.id: view(state, profile) for profile in turn.cohort}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return Reply(client.id, {}, 1.0), memory

    def merge(state: ModelState, replies: Iterable[Reply]) -> ModelState:
        return {**state, "params": aggregate(state["params"], replies, weighting)}

    def expects(order: Order) -> Params:
        layout = federation.layouts[order.settings["architecture"]]
        layers = order.settings.get("layers", range(layout.num_layers))
        return select(order.params, {*layout.names(layers), *layout.head})

    return Method("mean", init, (Exchange("fit", ask, work, merge, expects),), view)


def with_shared(method: Method, mean: Method, shared: Federation) -> Method:
    """The method for the rest of a federation's tensors, joined to ``mean``, which averages the ``shared`` ones.

    A client is sent both, and trains what of its layout is in the layers that ``method`` gives it (all of it where an
    order names no layers). The method itself keeps none of the shared tensors and is given none of them to merge. As
    they may be averaged by any rule, those of a round's replies, which are small, are held until all have arrived.

    Raises
    ------
    ConfigError
        if the method has several exchanges, so that it is not known in which of them clients train.
    """
    if len(method.exchanges) != 1:
        given = "', '".join(exchange.name for exchange in method.exchanges)
        raise ConfigError(
            f"axes.share = 'all': method.name = '{method.name}' has {len(method.exchanges)} exchanges in a round "
            f"('{given}'), and tensors can be shared beside one alone; set axes.share = 'architecture'"
        )
    (fit,), (averaged,) = method.exchanges, mean.exchanges
    profiles = {profile.id: profile for profile in shared.profiles}
    names = frozenset(name for layout in shared.layouts.values() for name in layout.depth)
    wanted = averaged.expects
    assert wanted is not None  # mean_of has it

    def rest(order: Order) -> Order:
        return replace(order, params=without(order.params, names))

    def init(rng: Rng) -> SharedState:
        return {**method.init(rng), "shared": mean.init(rng)}

    def joined(state: SharedState, profile: Profile, order: Order) -> Order:
        return replace(order, params={**order.params, **mean.view(state["shared"], profile).params})

    def view(state: SharedState, profile: Profile) -> Order:
        return joined(state, profile, method.view(state, profile))

    def ask(state: SharedState, turn: Turn) -> Mapping[ClientId, Order]:
        return {client: joined(state, profiles[client], order) for client, order in fit.ask(state, turn).items()}

    def merge(state: SharedState, replies: Iterable[Reply]) -> SharedState:
        held: list[Reply] = []

        def others() -> Iterator[Reply]:
            for reply in replies:
                held.append(replace(reply, params=select(reply.params, names)))
                yield replace(reply, params=without(reply.params, names))

        after = fit.merge(state, others())
        return {**after, "shared": averaged.merge(state["shared"], held)}

    def expects(order: Order) -> Params:
        inner = {} if fit.expects is None else fit.expects(rest(order))
        return {**inner, **wanted(order)}

    def report(state: SharedState) -> Mapping[str, Any]:
        return {**method.report(state), **mean.report(state["shared"])}

    exchange = fit._replace(ask=ask, merge=merge, expects=None if fit.expects is None else expects)
    return method._replace(init=init, exchanges=(exchange,), view=view, report=report)


def _only(federation: Federation, counts: Callable[[str], bool]) -> Federation:
    """The federation with those of its tensors for whose names ``counts`` holds."""

    def kept(layout: Layout) -> Layout:
        depth = {name: layer for name, layer in layout.depth.items() if counts(name)}
        shapes = {name: layout.shapes[name] for name in depth}
        return replace(layout, depth=depth, shapes=shapes, buffers=frozenset(filter(counts, layout.buffers)))

    def drawn(start: Callable[[Rng], Params], rng: Rng) -> Params:
        return {name: tensor for name, tensor in start(rng).items() if counts(name)}

    return replace(
        federation,
        layouts={name: kept(layout) for name, layout in federation.layouts.items()},
        initial={name: partial(drawn, start) for name, start in federation.initial.items()},
        frozen={name: frozenset(filter(counts, own)) for name, own in federation.frozen.items()},
    )
