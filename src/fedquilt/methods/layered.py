"""The common part of methods whose clients train some layers and whose server combines them layer by layer.

Such a method consists of an ``allocation``, the layers that each client trains in a round (clients without an entry do
not take part), and a ``rule``, by which the server combines the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from fedquilt.adapters.buffers import VARIANCES
from fedquilt.adapters.lora.inject import fresh
from fedquilt.aggregate.lowrank.base_log import (
    ServerBase,
    advanced,
    first_base,
    incoming,
    model_on_base,
    outgoing,
    shifts,
)
from fedquilt.aggregate.lowrank.rules import dispatched, merged
from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.allocate.layers import gd_set
from fedquilt.client.fit import METRICS
from fedquilt.core.checks import reach
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.factors import ProductTree
from fedquilt.core.federation import Federation, Rule
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select, without
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Layout, Memory, ModelState, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker


class ChangingBaseState(ModelState):
    """The state under a rule that changes the base.

    Attributes
    ----------
    base
        The base's version and changes, and which of them the clients have.
    carried
        The part of the changes, by module, that the rule keeps for the next round.
    """

    base: ServerBase
    carried: dict[str, ProductTree]


Allocation = Callable[[Tree, Turn], Mapping[ClientId, tuple[int, ...]]]
Weighting = Literal["examples", "uniform"]
FactorPolicy = Callable[[int], Collection[str]]
"""The factors, of ``lora_A`` and ``lora_B``, that clients train in the round with this number."""
RankPolicy = Callable[[Tree, Profile], int | None]
"""The current rank of a client's adapters, None for the server's."""


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
    """The method in which client k trains the layers ``allocation(state, turn)[k]`` and the head.

    Every client receives all adapters, as the forward pass needs them, and returns the tensors that it trained. The
    state is a ``ModelState``; a method with more in it wraps ``init`` and ``merge``. With a rule that changes the base,
    it is a ``ChangingBaseState``, the memory of every client holds ``base``, and an order holds the changes that its
    client lacks.

    Parameters
    ----------
    name, federation
        The method's name, and the server's view of the clients.
    allocation
        The numbers of the layers that each client of the cohort trains; clients without an entry do not take part.
    weighting
        Clients' weights in the means, ``"examples"`` or ``"uniform"``.
    factors
        The factors that are trained and returned in a round; both for None.
    rule
        How the server combines adapters: for None by the federation's rule, or without one by the layer-wise mean.
        Other tensors are always averaged.
    ranks
        The rank of the adapters that a client receives; where it gives None, the server's.
    drop_layers
        Whether a client's model consists of only its layers, so that only their adapters travel.

    Raises
    ------
    ConfigError
        if clients differ in rank and the rule requires equal ranks.
    """
    layout, rule = federation.layout, rule or federation.rule
    aggregate = federation.aggregate or layerwise_mean
    profiles = {profile.id: profile for profile in federation.profiles}
    _check_ranks(federation, rule)

    def init(rng: Rng) -> ModelState:
        return {"params": federation.initial[layout.architecture](rng)}

    def ask(state: ModelState, turn: Turn) -> Mapping[ClientId, Order]:
        policy = {} if factors is None else {"factors": sorted(factors(turn.round))}
        orders = {}
        for client, layers in allocation(state, turn).items():
            params = dispatched(state["params"], ranks(state, profiles[client]), federation.scaling)
            if drop_layers:
                params = select(params, {*layout.names(layers), *layout.head})
            orders[client] = Order(params, {"layers": list(layers), **policy})
        return orders

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        layers = order.settings["layers"]
        if resting := _left_alone(federation, order):
            client = client.freezing(resting)
        fitted = client.fit(order, memory, layers, blocks=layers if drop_layers else None)
        return Reply(client.id, fitted.params, fitted.num_examples, fitted.metrics), memory

    def merge(state: ModelState, replies: Iterable[Reply]) -> ModelState:
        return {**state, "params": aggregate(state["params"], replies, weighting)}

    def expects(order: Order) -> Params:
        trained = {*layout.names(order.settings["layers"]), *layout.head}
        return select(order.params, trained - _left_alone(federation, order))

    def view(state: ModelState, profile: Profile) -> Order:
        return Order({**state["params"], **dispatched(state["params"], ranks(state, profile), federation.scaling)})

    ranges = partial(_statistics, layout) if layout.buffers else None
    fit = Exchange("fit", ask, work, merge, expects, partial=drop_layers, metrics=lambda order: METRICS, ranges=ranges)
    method = Method(name, init, (fit,), view)
    return method if rule is None else _by_rule(rule, method, federation, ranks, weighting)


def _left_alone(federation: Federation, order: Order) -> set[str]:
    """The tensors that are not trained in the order's round, whatever its layers: factors, and frozen tensors."""
    layout = federation.layout
    frozen = federation.frozen.get(layout.architecture, frozenset())
    trained = order.settings.get("factors")
    adapted = frozenset(layout.depth) - layout.head
    return {*frozen} if trained is None else {*adapted, *frozen} - {*factors_named(layout, trained)}


def _statistics(layout: Layout, order: Order) -> dict[str, Range]:
    """The ranges of buffers such as running statistics, for which no norm of an update is bounded."""
    within = {name: reach(order.params[name]) for name in layout.buffers & order.params.keys()}
    return {name: one._replace(low=0.0) if name.endswith(VARIANCES) else one for name, one in within.items()}


def _by_rule(rule: Rule, method: Method, federation: Federation, ranks: RankPolicy, weighting: Weighting) -> Method:
    """The method whose server combines the factors of adapters by this rule."""
    (fit,) = method.exchanges

    def merge(state: ModelState, replies: Iterable[Reply]) -> ModelState:
        return {**state, "params": merged(rule, state["params"], replies, weighting, federation.scaling).params}

    method = method._replace(exchanges=(fit._replace(merge=merge),))
    if rule.fresh:
        method = _with_fresh_adapters(method, federation, ranks)
    if rule.changes_base:
        method = _on_a_changing_base(method, federation, rule, weighting)
    return method


def _with_fresh_adapters(method: Method, federation: Federation, ranks: RankPolicy) -> Method:
    """The method whose clients start every round with fresh adapters, drawn from their order's stream.

    As the server can draw them too, they do not travel: an order holds their rank instead.
    """
    layout = federation.layout
    profiles = {profile.id: profile for profile in federation.profiles}
    adapted = frozenset(layout.depth) - layout.head
    (fit,) = method.exchanges
    expected = fit.expects
    assert expected is not None  # layered's own exchange has it

    def drawn(order: Order) -> Order:
        own = fresh(layout, order.settings["rank"], order.rng.child("fresh"))
        return replace(order, params={**order.params, **own})

    def ask(state: ModelState, turn: Turn) -> Mapping[ClientId, Order]:
        return {
            client: Order(
                without(order.params, adapted),
                {**order.settings, "rank": ranks(state, profiles[client]) or server_rank(layout)},
            )
            for client, order in fit.ask(state, turn).items()
        }

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return fit.work(client, drawn(order), memory)

    def expects(order: Order) -> Params:
        return expected(drawn(order))

    def view(state: ModelState, profile: Profile) -> Order:
        return Order(dict(state["params"]))

    return method._replace(exchanges=(fit._replace(ask=ask, work=work, expects=expects),), view=view)


def _on_a_changing_base(method: Method, federation: Federation, rule: Rule, weighting: Weighting) -> Method:
    """The method with a rule that changes the base, whose version is in the state and in every client's memory."""
    profiles = {profile.id: profile for profile in federation.profiles}
    (fit,) = method.exchanges

    def init(rng: Rng) -> ChangingBaseState:
        state: ModelState = method.init(rng)
        return {**state, "base": first_base(), "carried": {}}

    def ask(state: ChangingBaseState, turn: Turn) -> Mapping[ClientId, Order]:
        version = state["base"]["log"]["version"]
        return {
            client: Order(order.params | outgoing(state["base"], client), {**order.settings, "base": version})
            for client, order in fit.ask(state, turn).items()
        }

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        params, base = incoming(order.params, memory.get("base"))
        if base["version"] != (version := order.settings["base"]):
            raise RoundError(
                f"the client's base is version {base['version']} and the server's {version}; what lies between was "
                "not sent: the client lost its memory, or it is of another run"
            )
        return fit.work(client, replace(order, params=params), {**memory, "base": base})

    def merge(state: ChangingBaseState, replies: Iterable[Reply]) -> ChangingBaseState:
        answered: list[ClientId] = []

        def noted() -> Iterator[Reply]:
            for reply in replies:
                answered.append(reply.client)
                yield reply

        made = merged(rule, state["params"], noted(), weighting, federation.scaling, state["carried"])
        base = advanced(state["base"], made.change, answered, profiles)
        return {**state, "params": made.params, "base": base, "carried": made.carried}

    def view(state: ChangingBaseState, profile: Profile) -> Order:
        return Order(method.view(state, profile).params | shifts(state["base"]))

    exchange = fit._replace(ask=ask, work=work, merge=merge)
    return method._replace(init=init, exchanges=(exchange,), view=view, model=model_on_base)


def _check_ranks(federation: Federation, rule: Rule | None) -> None:
    """Raise ConfigError if clients differ in rank and the rule requires equal ranks."""
    given = [profile.budget.rank for profile in federation.profiles if profile.budget.rank is not None]
    if not given or not (rule is None or rule.one_rank):
        return
    most = server_rank(federation.layout)
    if unlike := sorted({rank for rank in given if rank < most}):
        by = "the mean of factors" if rule is None else f"'{rule.name}'"
        raise ConfigError(
            f"clients.ranks holds {', '.join(map(str, unlike))} and the server's adapters have rank {most}: {by} needs "
            "one rank; leave clients.ranks out, or set method.name or aggregation.rule to 'flexlora', 'hetlora' or "
            "'flora'"
        )


def everyone(layers: tuple[int, ...]) -> Allocation:
    """Return the allocation in which every client of the cohort trains the same ``layers``."""
    return lambda state, turn: {profile.id: layers for profile in turn.cohort}


def server_rank(layout: Layout) -> int:
    """The largest rank of an adapter in the layout."""
    return max(shape[0] for name, shape in layout.shapes.items() if name.endswith(".lora_A"))


def factors_named(layout: Layout, factors: Collection[str]) -> tuple[str, ...]:
    """Names of the adapters' factors of these kinds (``"lora_A"``, ``"lora_B"``), in every layer."""
    return tuple(
        name for name, layer in layout.depth.items() if layer is not None and name.rpartition(".")[2] in factors
    )


def common_layers(federation: Federation, shape: str) -> tuple[int, ...]:
    """The layers of this shape that every client can train: as many as the lowest budget in the federation."""
    lowest = min(profile.budget.layers for profile in federation.profiles)
    return gd_set(shape, federation.layout.num_layers, lowest)
