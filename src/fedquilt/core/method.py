"""A federated method: a value made of plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker


class Wire(NamedTuple):
    """How the tensors of an exchange travel, see ``core.wire``: as ``dtype``, ``"bfloat16"`` or ``"int8"``.

    With ``feedback``, what rounding takes from a client's update is added to its next. Tensors named in ``exact``
    travel as they are.
    """

    dtype: str
    feedback: bool = True
    exact: frozenset[str] = frozenset()


class Release(NamedTuple):
    """What every reply of an exchange gives away of its client, under local privacy.

    Gaussian noise lies on it, ``noise_multiplier`` times the bound on the update's norm. ``epsilon`` at ``delta`` is
    all that a client gives away unless its site says other; None for no bound.
    """

    noise_multiplier: float
    epsilon: float | None
    delta: float


class Exchange(NamedTuple):
    """One ask -> work -> merge between the server and the clients of a cohort.

    ``ask(state, turn)`` gives the orders by client and reads only. ``work(client, order, memory)`` runs on the client
    and gives its reply and its new memory. ``merge(state, replies)`` reads the replies once, in client order, and is
    the only maker of state. A client that ``ask`` leaves out sits this exchange out.

    ``expects(order)``, if given, are the tensors that a reply to it must hold, and no others, in shape and dtype, with
    the values from which the client began: what a reply changes of them is its update. ``metrics(order)``, if given,
    are the numbers that a reply may hold besides, by name, and where each may lie: all others are dropped from it.
    ``ranges(order)``, if given, are tensors of which a reply holds values and no update, and where these may lie. A
    wrapper that changes what is sent up must say so here.

    ``peers(order)``, if given, names those whose replies are merged together and may be compared; else all are.

    ``wire``, if given, is how tensors travel. All functions here and all checks are of full tensors before and after.

    ``partial`` says that an order may lack a part of what its client would use (FedRA sends the drawn blocks alone).

    ``release``, if given, is what a reply costs in privacy: engines let ``privacy.ledger`` count it, and give the same
    reply again where the same is asked again.
    """

    name: str
    ask: Callable[[Tree, Turn], Mapping[ClientId, Order]]
    work: Callable[[Worker, Order, Memory], tuple[Reply, Memory]]
    merge: Callable[[Tree, Iterable[Reply]], Tree]
    expects: Callable[[Order], Params] | None = None
    wire: Wire | None = None
    partial: bool = False
    metrics: Callable[[Order], Mapping[str, Range]] | None = None
    ranges: Callable[[Order], Mapping[str, Range]] | None = None
    peers: Callable[[Order], str] | None = None
    release: Release | None = None


def overlay(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
    """A client's own tensors over the order's over the initial ones: the default of ``Method.model``."""
    return {**initial, **order.params, **memory.get("params", {})}


def reports_nothing(state: Tree) -> Mapping[str, Any]:
    """Nothing of the state, for the record: the default of ``Method.report``."""
    return {}


class Method(NamedTuple):
    """A federated method as a value: five functions and the exchanges of a round.

    ``init(rng)`` gives the first state; ``view(state, profile)`` an Order that holds what this client would use.

    ``exchanges`` make up a round. ``closing`` are done once, with every client, when the last round is over; what they
    merge is not kept: they measure.

    ``model(profile, initial, order, memory)`` says how an order becomes a model: every tensor of the client's layout by
    name, and beside them ``<module>.shift`` (what was merged into the base) and ``<module>.core`` (what lies between
    the factors), for training, scores and export alike. ``initial`` is what the client's training started from. The
    default, ``overlay``, takes each tensor from the client's memory, else the order, else ``initial``.

    ``report(state)`` is what of the state a round's line of the record holds: numbers and lists of numbers, or tables
    of them by name. A wrapper that keeps state of its own adds to it.
    """

    name: str
    init: Callable[[Rng], Tree]
    exchanges: tuple[Exchange, ...]
    view: Callable[[Tree, Profile], Order]
    closing: tuple[Exchange, ...] = ()
    model: Callable[[Profile, Params, Order, Memory], Params] = overlay
    report: Callable[[Tree], Mapping[str, Any]] = reports_nothing
