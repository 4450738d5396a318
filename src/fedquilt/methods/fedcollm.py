"""FedCoLLM: the server averages the students' adapters, then its large model and the averages distil each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from torch import Tensor

from fedquilt.core.federation import Federation
from fedquilt.core.method import Beside, Method
from fedquilt.core.rng import Rng
from fedquilt.core.server import ServerModel, after_round, fit_told, server_fit, server_order, server_start
from fedquilt.core.settings import Count, Penalty, Positive, Tokens, Unless
from fedquilt.core.types import Order, Reply, Tree
from fedquilt.core.worker import Fitted, Worker
from fedquilt.distill.predictions import Probe, in_tokens_of
from fedquilt.distill.public import TAKEN, Drawn, DrawnState, allowed, drawn, server_of
from fedquilt.distill.soft import Mixture, Taught, learner
from fedquilt.methods.layered import Weighting
from fedquilt.methods.per_architecture import placed
from fedquilt.methods.sharing import averaging
from fedquilt.methods.traits import Traits

TRAITS = Traits(across=True, merge="own", needs_server=True)


def fedcollm(
    federation: Federation,
    *,
    candidates: Count = 32,
    distil: Penalty = 1.0,
    temperature: Annotated[Positive, Unless("distil", 0.0)] = 1.0,
    k: Count = 128,
    answer_tokens: Tokens = 64,
    samples: Count = 8,
    weighting: Weighting = "examples",
) -> Method:
    """Federated averaging within each architecture, then mutual distillation at the server along public answers.

    The server trains each averaged student, and its own large model, on the public answers by cross-entropy plus
    ``distil`` times the divergence from what the other predicted along them before either learned. The trained student
    goes down in the next round.

    Parameters
    ----------
    federation : its clients may differ in architecture; the server owns a model and public questions with answers.
    candidates : number of public questions of a round, drawn anew in each.
    distil : weight of the divergence beside the cross-entropy.
    temperature : temperature of both distributions.
    k : number of the likeliest tokens that count at each position; all of a smaller vocabulary.
    answer_tokens : largest number of tokens of an answer that are distilled.
    samples : number of answers of each teacher in an optimiser step.
    weighting : clients' weights in the means of their adapters.

    Raises
    ------
    ConfigError
        if the server has no model, or its public questions no answers.
    """
    wanted = "method.name = 'fedcollm' trains on public answers"
    server = server_of(federation, "fedcollm", answered=wanted, trains=False)
    mixture, probe = Mixture(0.0, distil, temperature), Probe(k, answer_tokens, temperature)
    clients = averaging("fedcollm", federation, weighting)
    (fit,) = clients.exchanges

    def init(rng: Rng) -> DrawnState:
        return DrawnState(params=clients.init(rng)["params"], server=server_start(server, rng), told={})

    def merge(state: DrawnState, replies: Iterable[Reply]) -> DrawnState:
        averaged: DrawnState = fit.merge(state, replies)
        public = drawn(server, averaged["server"], candidates)
        return _mutual(averaged, federation, server, public, probe, mixture, samples)

    def report(state: Tree) -> Mapping[str, float]:
        return dict(state["told"])

    made = clients._replace(init=init, exchanges=(fit._replace(merge=merge),), report=report)
    return made._replace(server=lambda state: state["server"], beside=Beside(server=samples * len(federation.layouts)))


def _mutual(
    state: DrawnState,
    federation: Federation,
    server: ServerModel,
    public: Drawn,
    probe: Probe,
    mixture: Mixture,
    samples: int,
) -> DrawnState:
    """The state once the averaged students and the server's model have learned from each other.

    Parameters
    ----------
    state, federation, server
        The state with the averages, and whose models these are.
    public, probe
        The public answers of the round, and what both sides predict along them.
    mixture, samples
        How both learn, and from how many answers in an optimiser step.

    Paper: fedcollm, mutual
    """
    own, params, told = state["server"], dict(state["params"]), dict[str, float]()
    order = server_order(own, "learn")

    def trained(worker: Worker, order: Order, layers: int, teachers: list[Taught]) -> Fitted:
        """A model that has learned public answers, and what its teachers predict along them."""
        rng = order.rng.child("public")
        pupil = learner(worker, order, {}, public, teachers, mixture, rng, batch_size=samples)
        return server_fit(pupil.posing(public.questions, public.answers), order, {}, range(layers))

    orders = {name: _order_of(state, federation, name, order) for name in federation.layouts}
    chosen = {name: _chosen(state, federation, name, public) for name in orders}
    mine, cut = probe.of(server.worker, order, {}, public)
    theirs = {name: probe.of(server.students[name], orders[name], {}, public) for name in orders}
    for name, (_, own_cut) in theirs.items():
        student = server.students[name].freezing(federation.frozen.get(name, frozenset()))
        lesson = Taught(in_tokens_of(own_cut, cut, mine), chosen[name])
        learned = trained(student, orders[name], federation.layouts[name].num_layers, [lesson])
        params |= {placed(name, tensor): value for tensor, value in learned.params.items()}
        told |= fit_told(name, learned)
    lessons = [Taught(in_tokens_of(cut, own_cut, said), chosen[name]) for name, (said, own_cut) in theirs.items()]
    learned = trained(server.worker, order, server.layout.num_layers, lessons)
    told |= fit_told("server", learned)
    return DrawnState(**{**state, "params": params, "server": after_round(own, learned.params), "told": told})


def _order_of(state: DrawnState, federation: Federation, architecture: str, order: Order) -> Order:
    """The order for the server's worker of an architecture: its averaged student."""
    params = {name: state["params"][placed(architecture, name)] for name in federation.layouts[architecture].depth}
    return Order(params, round=order.round, rng=order.rng.child("student", architecture))


def _chosen(state: DrawnState, federation: Federation, architecture: str, public: Drawn) -> Tensor:
    """Which answers the server's model and an averaged student distil: those taken of any client of it, else all."""
    taken = state.get(TAKEN)
    if taken is None:
        return allowed(None, len(public.numbers))
    of = [str(profile.id) for profile in federation.profiles if profile.architecture == architecture]
    return allowed([position for client in of for position in taken.get(client, [])], len(public.numbers))
