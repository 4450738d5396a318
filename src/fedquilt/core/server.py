"""A server that owns a model and data: what a method is given of it, and what its state keeps for it.

``merge`` and ``ask`` call ``ServerModel.worker`` as a client's ``work`` calls its own worker: with an order and a
memory. Both come from the ``ServerState`` that the method keeps in its state, so that they are in every checkpoint:

    own = state["server"]
    fitted = server_fit(server.worker, server_order(own, "distil"), own["memory"], layers)
    return {**state, "server": after_round(own, fitted.params), "told": fit_told("server", fitted)}
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypedDict

from fedquilt.core.errors import DivergedError
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Layout, Memory, Order, Params
from fedquilt.core.worker import Fitted, Worker

SERVER: ClientId = -1
"""The id of the server's own clients; no partition has it."""

DIVERGED = "diverged"
"""What a training at the server tells in place of its loss, if a loss or a gradient was not finite."""

Share = Literal["public", "private"]
"""Which texts of a client a method may send, see ``[server] share``."""


class Questions(NamedTuple):
    """Public questions of the server, which it may send to every client.

    Attributes
    ----------
    texts
        The questions, as a model reads them.
    answers
        The answer to each; None if they are not known.
    kind
        How answers are compared, one of ``metrics.answers.KINDS``; None to compare them token by token.
    """

    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] | None = None
    kind: str | None = None


@dataclass(frozen=True)
class ServerModel:
    """The server's own model and data, which only its process holds.

    Attributes
    ----------
    layout
        The trainable tensors of its model.
    initial
        ``initial(rng)`` makes the tensors that training starts from.
    worker
        It trains, evaluates and generates with the server's model, on the server's own rows. Its id is ``SERVER``. On
        a site it has shapes only.
    questions
        The public questions; none on a site, where they arrive in orders.
    share
        Which texts of a client may be sent: ``"public"`` or ``"private"``.
    texts_only
        Whether ``worker`` can only complete texts, as it stands for an endpoint: the model has no layout, and is
        neither trained nor scored, and its log-probabilities are not known.
    students
        A worker with the clients' model of each architecture and without rows, by architecture: the server trains,
        reads and tokenizes with it. On a site those of other architectures have shapes only.
    """

    layout: Layout
    initial: Callable[[Rng], Params]
    worker: Worker
    questions: Questions = field(default_factory=Questions)
    share: Share = "public"
    texts_only: bool = False
    students: Mapping[str, Worker] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The name of the model's architecture."""
        return self.layout.architecture


class ServerState(TypedDict):
    """What a method keeps in its state for the server's own model.

    Attributes
    ----------
    params
        Every trainable tensor of the model.
    memory
        What the server remembers besides: a tree that never travels, such as an optimiser's state or filters.
    seed
        The seed of the server's draws: ``merge`` is given no random stream.
    round
        The number of rounds in which the server worked, which gives the learning rate and the draws.
    """

    params: Params
    memory: Memory
    seed: int
    round: int


def server_start(server: ServerModel, rng: Rng) -> ServerState:
    """The server's part of the initial state; ``rng`` is the stream that ``Method.init`` is given."""
    own = rng.child("server")
    return ServerState(params=server.initial(own.child("model")), memory={}, seed=own.integer(), round=0)


def server_order(own: ServerState, use: str) -> Order:
    """The order for ``ServerModel.worker``: the model, the round, and a random stream of this round and ``use``."""
    return Order(own["params"], round=own["round"], rng=Rng(own["seed"]).child("round", own["round"], use))


def server_fit(worker: Worker, order: Order, memory: Memory, layers: Collection[int]) -> Fitted:
    """Train a model at the server, in ``merge``; nothing is trained if a loss or a gradient is not finite.

    What clients sent may make it so. A client whose training diverges is left out of the round; the server cannot be,
    so its model stays as it was, which ``fit_told`` tells.
    """
    try:
        return worker.fit(order, memory, layers)
    except DivergedError:
        return Fitted({}, 0, {DIVERGED: 1.0})


def fit_told(who: str, fitted: Fitted) -> dict[str, float]:
    """What the round's record says of a training at the server: ``<who>_loss``, or ``<who>_diverged`` 1."""
    name = DIVERGED if DIVERGED in fitted.metrics else "loss"
    return {f"{who}_{name}": fitted.metrics.get(name, 0.0)}


def server_next(own: ServerState, params: Params | None = None, memory: Memory | None = None) -> ServerState:
    """The server's part of the state with these tensors changed, or another memory, in the same round."""
    kept = own["params"] if params is None else {**own["params"], **params}
    return ServerState(
        params=kept, memory=own["memory"] if memory is None else memory, seed=own["seed"], round=own["round"]
    )


def after_round(own: ServerState, params: Params | None = None, memory: Memory | None = None) -> ServerState:
    """``server_next`` at the end of the server's work in a round: the next draws are those of the next round."""
    return ServerState(**{**server_next(own, params, memory), "round": own["round"] + 1})
