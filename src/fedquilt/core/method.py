"""A federated method as a value made of plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fedquilt.core.rng import Rng
from fedquilt.core.server import ServerState
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker


class Wire(NamedTuple):
    """How the tensors of an exchange travel, see ``core.wire``: as ``dtype``, ``"bfloat16"`` or ``"int8"``.

    With ``feedback``, a client's rounding error is added to its next update (error feedback). Tensors named in
    ``exact`` are not rounded.
    """

    dtype: str
    feedback: bool = True
    exact: frozenset[str] = frozenset()


class Release(NamedTuple):
    """The privacy cost of every reply of an exchange under local differential privacy.

    Each reply carries Gaussian noise with a standard deviation of ``noise_multiplier`` times the bound on the update's
    norm. ``epsilon`` at ``delta`` is the total that a client may spend unless its site sets another; None for no limit.
    """

    noise_multiplier: float
    epsilon: float | None
    delta: float


class Exchange(NamedTuple):
    """One ask -> work -> merge between the server and the clients of a cohort.

    Attributes
    ----------
    name
        The exchange's name, unique within its method.
    ask
        ``ask(state, turn)`` gives the orders by client. It only reads the state. A client without an order does not
        take part in this exchange.
    work
        ``work(client, order, memory)`` runs on the client, a ``core.worker.Worker``, and gives its reply and its new
        memory.
    merge
        ``merge(state, replies)`` gives the new state. It reads the replies once, in client order; nothing else makes
        a state.
    expects
        ``expects(order)`` gives exactly the tensors that a reply must hold, in shape and dtype, with the values that
        training started from. The difference from these values is the reply's update. A wrapper that changes what
        clients send must change this field too, and so for ``metrics`` and ``ranges``.
    wire
        How tensors travel. The functions of the exchange and all checks see full tensors.
    partial
        Whether an order may hold only a part of the client's model (FedRA sends only the drawn blocks).
    metrics
        ``metrics(order)`` gives the numbers that a reply may hold besides its tensors, by name, and their ranges. All
        others are dropped.
    ranges
        ``ranges(order)`` gives the tensors of which a reply holds plain values instead of an update, and their ranges.
    peers
        ``peers(order)`` names the set of clients whose replies are merged together and may be compared. If left out,
        all clients of the exchange are peers.
    release
        The privacy cost of a reply. Engines account for it in ``privacy.ledger``, and answer a repeated order with the
        same reply.
    public
        Whether replies depend on no client's rows, so that they cost no privacy.
    keeps
        Whether clients keep the tensors of their orders for the rest of the round, so that a later exchange of it need
        not send the same ones again, see ``core.held``.
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
    public: bool = False
    keeps: bool = False


def overlay(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
    """Each tensor from the client's memory, else the order, else ``initial``: the default of ``Method.model``."""
    return {**initial, **order.params, **memory.get("params", {})}


def overlay_own(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
    """``overlay`` without the tensors of an order that are none of the model's: for orders that also hold texts."""
    own = {name: tensor for name, tensor in order.params.items() if name in initial}
    return {**initial, **own, **memory.get("params", {})}


def reports_nothing(state: Tree) -> Mapping[str, Any]:
    """An empty report of the state: the default of ``Method.report``."""
    return {}


class Beside(NamedTuple):
    """Rows of the passes that a method adds to an optimiser step, after the one over the student's own rows.

    ``client`` are those of a step on a client. On the server a pass of ``server`` rows follows, and another one of
    ``each`` rows for every client of the cohort.
    """

    client: int = 0
    server: int = 0
    each: int = 0

    def on_server(self, cohort: int) -> tuple[int, int]:
        """The rows of both passes of a step on the server, with so many clients in a cohort."""
        return self.server, self.each * cohort


class Method(NamedTuple):
    """A federated method: its functions and the exchanges of a round.

    Attributes
    ----------
    name
        The method's name in run files.
    init
        ``init(rng)`` gives the initial state.
    exchanges
        The exchanges that make up a round.
    view
        ``view(state, profile)`` gives an order that holds the model this client would use now.
    closing
        Exchanges that are done once, with every client, after the last round. They measure: their merges are not kept.
    model
        ``model(profile, initial, order, memory)`` says how an order becomes a model, for training, evaluation and
        export alike: every tensor of the client's layout by name, ``<module>.shift`` (a change that was merged into the
        base) and ``<module>.core`` (the matrix between the factors). ``initial`` holds the client's tensors before the
        first round. The default, ``overlay``, takes each tensor from the client's memory, else the order, else
        ``initial``.
    report
        ``report(state)`` gives the part of the state that a round's line of the record holds: numbers and lists of
        numbers, or tables of them by name. A wrapper that keeps state of its own adds to it.
    server
        ``server(state)`` gives what the state holds of the server's own model, which is evaluated and exported; None
        for a method whose server has no model of its own.
    beside
        The rows that the method adds to optimiser steps, for a plan of memory and time.
    scores
        ``scores(state)`` gives the scores of the last prediction that all parties made together, by name; empty before
        the first. None for methods whose models predict alone.
    logits
        ``logits(state, replies, rows, holds)`` gives the logits of rows that all parties predict together, (rows,
        classes), from the other parties' replies to the exchange ``predict`` and the server's own view of these rows.
        ``holds`` says which party has each row, (rows, parties), boolean. None for methods whose models predict alone.
    """

    name: str
    init: Callable[[Rng], Tree]
    exchanges: tuple[Exchange, ...]
    view: Callable[[Tree, Profile], Order]
    closing: tuple[Exchange, ...] = ()
    model: Callable[[Profile, Params, Order, Memory], Params] = overlay
    report: Callable[[Tree], Mapping[str, Any]] = reports_nothing
    server: Callable[[Tree], ServerState] | None = None
    beside: Beside = Beside()
    scores: Callable[[Tree], Mapping[str, float]] | None = None
    logits: Callable[[Tree, Iterable[Reply], Params, Tensor], Tensor] | None = None
