"""Rounds in which clients of all architectures share some tensors and average the others within each architecture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.mean import layerwise_mean
from fedquilt.allocate.layers import gd_set
from fedquilt.client.fit import METRICS
from fedquilt.core.errors import ConfigError
from fedquilt.core.factors import at_rank
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.params import select
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, ModelState, Order, Params, Profile, Reply, Turn
from fedquilt.core.worker import Penalty as Term
from fedquilt.core.worker import Worker
from fedquilt.core.wrap import with_local
from fedquilt.methods.layered import Weighting
from fedquilt.methods.per_architecture import placed


def check_shared(federation: Federation, name: str, remedy: str) -> None:
    """Raise ConfigError if an architecture has no shared tensors, or they have different names or shapes elsewhere."""
    shapes = {
        own: {key: shape for key, shape in layout.shapes.items() if is_shared(key)}
        for own, layout in federation.layouts.items()
    }
    (first, wanted), *others = shapes.items()
    problems = [
        f"method.name = '{name}': {own} has no adapters with tensors to share; {remedy}"
        for own, found in shapes.items()
        if not found
    ]
    problems += [
        f"method.name = '{name}': '{odd}' is {found.get(odd, 'missing')} in {own} and {wanted.get(odd, 'missing')} in "
        f"{first}; all architectures must have adapters of the same rank at the same modules"
        for own, found in others
        if (odd := next((key for key in {**wanted, **found} if wanted.get(key) != found.get(key)), None))
        and found
        and wanted
    ]
    if problems:
        raise ConfigError(problems)


def averaging(name: str, federation: Federation, weighting: Weighting, *, average: bool = True) -> Method:
    """The rounds of a method whose clients are averaged within each architecture, or each keep their own tensors.

    Raises
    ------
    ConfigError
        if a client's rank differs from that of its architecture, and its tensors are averaged.
    """
    clients = sharing(name, federation, False, None, weighting)
    if not average:
        return with_local(clients, frozenset().union(*(layout.depth for layout in federation.layouts.values())))
    for profile in federation.profiles:
        layout, rank = federation.layouts[profile.architecture], profile.budget.rank
        if at_rank(layout, rank).shapes != layout.shapes:
            raise ConfigError(
                f"method.name = '{name}': client {profile.id} has rank {rank}, below that of {profile.architecture}, "
                "within which factors are averaged; leave clients.ranks and the groups' rank out, and set adapter.rank"
            )
    return clients


def sharing(name: str, federation: Federation, share: bool, penalty: Term | None, weighting: Weighting) -> Method:
    """The rounds of a method whose clients share some tensors.

    A client of budget b trains the b deepest blocks, and a shared tensor if all blocks that use it are among them.

    Parameters
    ----------
    name : the method's name.
    federation : its clients may differ in architecture.
    share : False averages shared tensors within each architecture too.
    penalty : a term of every client's loss.
    weighting : clients' weights in the means.
    """
    layouts, owner = federation.layouts, {profile.id: profile.architecture for profile in federation.profiles}
    frozen = {own: federation.frozen.get(own, frozenset()) for own in layouts}
    aggregate = federation.aggregate or layerwise_mean

    def place(architecture: str, tensor: str) -> str:
        """The name of a tensor in the server's state: one for a shared tensor, else one for each architecture."""
        return tensor if share and is_shared(tensor) else placed(architecture, tensor)

    def init(rng: Rng) -> ModelState:
        # initial shared tensors depend only on their names and this stream, and are the same for every architecture
        made = {own: start(rng) for own, start in federation.initial.items()}
        return {"params": {place(own, name): value for own, params in made.items() for name, value in params.items()}}

    def view(state: ModelState, profile: Profile) -> Order:
        own = profile.architecture
        return Order({name: state["params"][place(own, name)] for name in layouts[own].depth})

    def ask(state: ModelState, turn: Turn) -> Mapping[ClientId, Order]:
        orders = {}
        for profile in turn.cohort:
            num_layers = layouts[profile.architecture].num_layers
            layers = gd_set("inverted-triangle", num_layers, profile.budget.layers)
            settings = {"layers": list(layers), "architecture": profile.architecture}
            orders[profile.id] = replace(view(state, profile), settings=settings)
        return orders

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        resting = frozen[order.settings["architecture"]]
        trainer = client.freezing(resting) if resting else client
        trainer = trainer.penalised(penalty) if penalty else trainer
        fitted = trainer.fit(order, memory, order.settings["layers"])
        return Reply(client.id, fitted.params, fitted.num_examples, fitted.metrics), memory

    def expects(order: Order) -> Params:
        own = order.settings["architecture"]
        trained = {*layouts[own].names(order.settings["layers"]), *layouts[own].head} - frozen[own]
        return select(order.params, trained)

    def merge(state: ModelState, replies: Iterable[Reply]) -> ModelState:
        def placed() -> Iterator[Reply]:
            for reply in replies:
                own = owner[reply.client]
                yield replace(reply, params={place(own, name): value for name, value in reply.params.items()})

        return {**state, "params": aggregate(state["params"], placed(), weighting)}

    fit = Exchange("fit", ask, work, merge, expects, metrics=lambda order: METRICS)
    return Method(name, init, (fit,), view)
