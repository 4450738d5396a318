"""The orders of a first round, before there is one: for a plan, and to refuse clients that would train nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from fedquilt.adapters.sites import is_shared
from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Order, Params, Profile, Turn
from fedquilt.core.wire import num_wire_bytes
from fedquilt.core.worker import Worker

_ROUNDS = 50
"""The largest number of rounds in which a client is looked for that trains nothing."""


def first_orders(method: Method, profiles: Sequence[Profile], rng: Rng) -> Mapping[ClientId, Order]:
    """The orders of a first round in which every client takes part; ``rng`` is the stream of the run."""
    turn = Turn(0, tuple(profiles), rng.child("round", 0))
    return training_of(method).ask(method.init(rng.child("init")), turn)


class Begun(NamedTuple):
    """A first round up to its training: the orders of it, and the bytes of the exchanges before it.

    ``moved`` are bytes down and up by client, in the type in which they travel.
    """

    orders: Mapping[ClientId, Order]
    moved: Mapping[ClientId, tuple[int, int]]


def begun_round(method: Method, clients: Mapping[ClientId, Worker], profiles: Sequence[Profile], rng: Rng) -> Begun:
    """The first round of clients on the meta device, who all take part, up to its training.

    Exchanges that depend on no client's rows happen once in a run, and are left out.

    Parameters
    ----------
    method, profiles
        The method, and the profiles of all clients.
    clients
        The clients, by number.
    rng
        The stream of the run.
    """
    turn, state = Turn(0, tuple(profiles), rng.child("round", 0)), method.init(rng.child("init"))
    training, moved = training_of(method), dict[ClientId, tuple[int, int]]()
    held = dict[ClientId, Params]()
    for exchange in takewhile(lambda one: one is not training, method.exchanges):
        if exchange.public:
            continue
        replies = []
        for id, order in sorted(exchange.ask(state, turn).items()):
            reply, _ = exchange.work(clients[id], order, {})
            sizes = (num_wire_bytes(message.params, exchange.wire) for message in (order, reply))
            down, up = (before + size for before, size in zip(moved.get(id, (0, 0)), sizes, strict=True))
            moved[id] = down, up
            held |= {id: order.params} if exchange.keeps else {}
            replies.append(reply)
        state = exchange.merge(state, replies) if replies else state
    orders = training.ask(state, turn)
    for id, order in orders.items():  # what a client keeps is not sent again
        again = {name: tensor for name, tensor in order.params.items() if held.get(id, {}).get(name) is tensor}
        if again:
            down, up = moved[id]
            moved[id] = down - num_wire_bytes(again, training.wire), up
    return Begun(orders, moved)


def training_of(method: Method) -> Exchange:
    """The exchange in which clients train: that called ``fit``, or else the first."""
    return next((exchange for exchange in method.exchanges if exchange.name == "fit"), method.exchanges[0])


def refuse_idle(method: Method, federation: Federation, rng: Rng) -> None:
    """Raise ConfigError if the orders of a client reach no tensor that can be trained, in no round of the run.

    This happens where blocks share tensors: one is trained by those that train the shallowest block that uses it. Where
    layers are drawn, a client that trains nothing in one round may do so in a later one. The orders are those of the
    first ``_ROUNDS`` rounds in which every client takes part, from the state at the start: layers that follow from what
    clients say later are not known.
    """
    if not any(is_shared(name) for layout in federation.layouts.values() for name in layout.depth):
        return
    state, training = method.init(rng.child("init")), training_of(method)
    idle = federation.profiles
    for number in range(min(federation.rounds, _ROUNDS)):
        turn = Turn(number, tuple(federation.profiles), rng.child("round", number))
        orders = training.ask(state, turn)
        idle = tuple(one for one in idle if one.id in orders and _trains_nothing(federation, one, orders[one.id]))
        if not idle:
            return
    for profile in idle:
        layout = federation.layouts[profile.architecture]
        raise ConfigError(
            f"client {profile.id} has a budget of {profile.budget.layers} of the {layout.num_layers} blocks of "
            f"{profile.architecture} and would train nothing, as what blocks share is trained by those that train the "
            "shallowest block that uses it; give it a larger budget, adapter.num_slots or adapter.private_rank"
        )


def _trains_nothing(federation: Federation, profile: Profile, order: Order) -> bool:
    """Whether an order names layers, and none of their tensors, nor the head's, can be trained."""
    if "layers" not in order.settings:
        return False
    layout, frozen = federation.layouts[profile.architecture], federation.frozen.get(profile.architecture, frozenset())
    return not {*layout.names(order.settings["layers"]), *layout.head} - frozen
