"""The trunk of every method in which each client trains some layers' adapters and the server combines them layer by
layer.

Such a method is its ``allocation``, who trains which layers this round (what it leaves out sits the round out), and its
``rule``, what the server makes of the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from fedquilt.adapters.buffers import VARIANCES
from fedquilt.adapters.lora.inject import fresh
from fedquilt.aggregate.lowrank.base_log import advanced, first_base, incoming, model_on_base, outgoing, shifts
from fedquilt.aggregate.lowrank.rules import Rule, dispatched, merged
from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.allocate.layers import gd_set
from fedquilt.client.fit import METRICS
from fedquilt.core.checks import reach
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.method import Exchange, Method, overlay
from fedquilt.core.params import select, without
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Federation, Layout, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker

Allocation = Callable[[Tree, Turn], Mapping[ClientId, tuple[int, ...]]]
Weighting = Literal["examples", "uniform"]
FactorPolicy = Callable[[int], Collection[str]]
"""The factors, of ``lora_A`` and ``lora_B``, that clients train in a round of this number."""
RankPolicy = Callable[[Tree, Profile], int | None]
"""The rank that a client is sent now, None for the server's."""


def layered(
    name: str,
    federation: Federation,
    allocation: Allocation,
    *,
    weighting: Weighting = "examples",
    factors: FactorPolicy | None = None,
    rule: Rule | None = None,
    ranks: RankPolicy = lambda state, profile: profile.budget.rank,
    drop_layers: bool = False,
) -> Method:
    """The method in which client k trains the layers ``allocation(state, turn)[k]`` and the head, for all architectures
    alike.

    Everybody receives all adapters, which the forward pass needs, at the rank that ``ranks`` says, and sends back what
    it trained. With ``drop_layers`` the client's model is physically made of these layers alone, and only their
    adapters travel. The state holds ``params``; a method with more in its state wraps ``init`` and ``merge``.

    The server combines adapters by ``rule``, or the federation's own, or averages by layer; all else is averaged.
    ``factors`` leaves one of the two factors alone, in the rounds that it says: the other one is trained and sent. With
    a rule that changes the base, the state holds ``base``, and so does the memory of every client; an order carries the
    changes that its client lacks.

    Raises
    ------
    ConfigError
        if clients differ in rank and the rule takes one rank only.
    """
    layout = federation.layout
    rule = rule or federation.rule
    aggregate = federation.aggregate or layerwise_mean
    profiles = {profile.id: profile for profile in federation.profiles}
    adapted = frozenset(layout.depth) - layout.head
    frozen = federation.frozen.get(layout.architecture, frozenset())
    _check_ranks(federation, rule)

    def policy(round: int) -> dict[str, list[str]]:
        return {} if factors is None else {"factors": sorted(factors(round))}

    def left_alone(order: Order) -> set[str]:
        """What the order's round does not train, whatever its layers: factors, and what nobody here ever trains."""
        trained = order.settings.get("factors")
        return {*frozen} if trained is None else {*adapted, *frozen} - {*factors_named(layout, trained)}

    def drawn(order: Order, rank: int) -> Params:
        """The adapters that a client of a rule with fresh ones begins from: the server can draw them, too."""
        return fresh(layout, rank, order.rng.child("fresh"))

    def init(rng: Rng) -> Tree:
        state = {"params": federation.initial[layout.architecture](rng)}
        if rule is None or not rule.changes_base:
            return state
        return {**state, "base": first_base(), "carried": {}}

    def sent(state: Tree, profile: Profile) -> Params:
        """The server's tensors as this client gets them, the base aside."""
        if rule is not None and rule.fresh:
            return without(state["params"], adapted)
        return dispatched(state["params"], ranks(state, profile), federation.scaling)

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        orders = {}
        for client, layers in allocation(state, turn).items():
            params, settings = sent(state, profiles[client]), {"layers": list(layers), **policy(turn.round)}
            if drop_layers:
                params = select(params, {*layout.names(layers), *layout.head})
            if "base" in state:
                params |= outgoing(state["base"], client)
                settings["base"] = state["base"]["log"]["version"]
            if rule is not None and rule.fresh:
                settings["rank"] = ranks(state, profiles[client]) or server_rank(layout)
            orders[client] = Order(params, settings)
        return orders

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        layers, version = order.settings["layers"], order.settings.get("base")
        if version is not None:
            params, base = incoming(order.params, memory.get("base"))
            if base["version"] != version:
                raise RoundError(
                    f"the client's base is version {base['version']} and the server's {version}; what lies between was "
                    "not sent: the client lost its memory, or it is of another run"
                )
            memory, order = {**memory, "base": base}, replace(order, params=params)
        if rank := order.settings.get("rank"):
            order = replace(order, params={**order.params, **drawn(order, rank)})
        if resting := left_alone(order):
            client = client.freezing(resting)
        fitted = client.fit(order, memory, layers, **({"blocks": layers} if drop_layers else {}))
        return Reply(client.id, fitted.params, fitted.num_examples, fitted.metrics), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        if rule is None:
            return {**state, "params": aggregate(state["params"], replies, weighting)}
        answered: list[ClientId] = []

        def noted() -> Iterator[Reply]:
            for reply in replies:
                answered.append(reply.client)
                yield reply

        made = merged(rule, state["params"], noted(), weighting, federation.scaling, state.get("carried"))
        if "base" not in state:
            return {**state, "params": made.params}
        base = advanced(state["base"], made.change, answered, profiles)
        return {**state, "params": made.params, "base": base, "carried": made.carried}

    def expects(order: Order) -> Params:
        names = {*layout.names(order.settings["layers"]), *layout.head} - left_alone(order)
        if rank := order.settings.get("rank"):
            return select({**drawn(order, rank), **order.params}, names)
        return select(order.params, names)

    def view(state: Tree, profile: Profile) -> Order:
        params = {**state["params"], **sent(state, profile)}
        return Order(params | shifts(state["base"]) if "base" in state else params)

    def statistics(order: Order) -> dict[str, Range]:
        """What training writes down is no update of weights: it is held to where it may lie, and to no length."""
        within = {name: reach(order.params[name]) for name in layout.buffers & order.params.keys()}
        return {name: one._replace(low=0.0) if name.endswith(VARIANCES) else one for name, one in within.items()}

    ranges = statistics if layout.buffers else None
    fit = Exchange("fit", ask, work, merge, expects, partial=drop_layers, metrics=lambda order: METRICS, ranges=ranges)
    model = model_on_base if rule is not None and rule.changes_base else overlay
    return Method(name, init, (fit,), view, model=model)


def _check_ranks(federation: Federation, rule: Rule | None) -> None:
    """Nothing, if the clients' ranks are such as the rule can combine."""
    given = [profile.budget.rank for profile in federation.profiles if profile.budget.rank is not None]
    if not given or not (rule is None or rule.one_rank):
        return
    most = server_rank(federation.layout)
    if unlike := sorted({rank for rank in given if rank != most}):
        by = "the mean of factors" if rule is None else f"'{rule.name}'"
        raise ConfigError(
            f"clients.ranks holds {', '.join(map(str, unlike))} and adapter.rank is {most}: {by} needs one rank; "
            "leave clients.ranks out, or set method.name or aggregation.rule to 'flexlora', 'hetlora' or 'flora'"
        )


def everyone(layers: tuple[int, ...]) -> Allocation:
    """Return the allocation in which every client of the cohort trains the same ``layers``."""
    return lambda state, turn: {profile.id: layers for profile in turn.cohort}


def server_rank(layout: Layout) -> int:
    """The largest rank of an adapter in the layout."""
    return max(shape[0] for name, shape in layout.shapes.items() if name.endswith(".lora_A"))


def factors_named(layout: Layout, factors: Collection[str]) -> tuple[str, ...]:
    """Names of the adapters' tensors that are one of these factors (``"lora_A"``, ``"lora_B"``), in every layer."""
    return tuple(
        name for name, layer in layout.depth.items() if layer is not None and name.rpartition(".")[2] in factors
    )


def common_layers(federation: Federation, shape: str) -> tuple[int, ...]:
    """The layers of this shape that every client affords: as many as the lowest budget in the federation."""
    lowest = min(profile.budget.layers for profile in federation.profiles)
    return gd_set(shape, federation.layout.num_layers, lowest)
