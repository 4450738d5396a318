"""FedMKT: the server's large model and the clients' small ones teach each other the answers that they know better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch

from fedquilt.core.federation import Federation
from fedquilt.core.method import Beside, Exchange, Method, overlay_own
from fedquilt.core.rng import Rng
from fedquilt.core.server import ServerModel, after_round, fit_told, server_fit, server_order, server_start
from fedquilt.core.settings import Count, Penalty, Tokens, With
from fedquilt.core.texts import unpack_texts, whole_texts
from fedquilt.core.types import ClientId, Memory, Order, Params, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker
from fedquilt.distill import predictions as p
from fedquilt.distill.beside import bare, bare_reply, reading_bare
from fedquilt.distill.predictions import Probe, better, cuts, in_tokens_of, merged
from fedquilt.distill.public import TAKEN, Drawn, DrawnState, allowed, drawn, server_of
from fedquilt.distill.soft import Mixture, Taught, learner
from fedquilt.methods.layered import Weighting
from fedquilt.methods.sharing import averaging
from fedquilt.methods.traits import Traits

TRAITS = Traits(across=True, merge="own", sends_scores=True, needs_server=True)

Work = Callable[[Worker, Order, Memory], tuple[Reply, Memory]]

PUBLIC = "public"
QUESTIONS, ANSWERS, SERVER, OWN = (f"{PUBLIC}.{what}" for what in ("questions", "answers", "server", "own"))
"""Public questions and their answers, and the predictions of the server and of the client along them."""


def fedmkt(
    federation: Federation,
    *,
    candidates: Count = 32,
    answers: Penalty = 0.9,
    distil: Penalty = 0.1,
    k: Count = 128,
    answer_tokens: Tokens = 64,
    samples: Count = 8,
    average: bool = False,
    weighting: Annotated[Weighting, With("average", (True,))] = "examples",
) -> Method:
    """Mutual transfer of next-token predictions along public answers, each from the side that knows an answer better.

    In a round a client is sent public questions with answers, and the server's likeliest tokens along them, translated
    into its own. It trains on its rows, and on the answers that the server finds likelier than itself. It returns its
    own likeliest tokens and the loss of each answer. The server then learns likewise: of each answer from the party
    that finds it likeliest, if that is a client.

    Parameters
    ----------
    federation : its clients may differ in architecture; the server owns a model and public questions with answers.
    candidates : number of public questions of a round, drawn anew in each.
    answers : weight of the cross-entropy of the public answers that are learned, beside the loss on own rows.
    distil : weight of the divergence from the teacher's predictions along them.
    k : number of the likeliest tokens that are sent for each position; all of a smaller vocabulary.
    answer_tokens : largest number of tokens of an answer whose predictions are sent.
    samples : number of public answers in an optimiser step.
    average : average the clients' adapters within each architecture; else each client keeps its own.
    weighting : clients' weights in these means.

    Raises
    ------
    ConfigError
        if the server has no model or no rows, or its public questions have no answers.
    """
    server = server_of(federation, "fedmkt", answered="method.name = 'fedmkt' trains on public answers")
    clients = averaging("fedmkt", federation, weighting, average=average)
    (fit,) = clients.exchanges
    learning = partial(learner, mixture=Mixture(answers, distil), batch_size=samples)
    probe = Probe(k, answer_tokens)

    def init(rng: Rng) -> DrawnState:
        return DrawnState(params=clients.init(rng)["params"], server=server_start(server, rng), told={})

    def report(state: Tree) -> Mapping[str, float]:
        return dict(state["told"])

    transfer = _checked(fit, probe)._replace(
        ask=_down(fit, federation, server, candidates, probe),
        work=_on_client(fit, probe, learning),
        merge=_up(fit, federation, server, candidates, probe, learning),
    )
    rows = Beside(samples, samples)
    made = clients._replace(init=init, exchanges=(transfer,), model=overlay_own, report=report, beside=rows)
    return made._replace(server=lambda state: state["server"])


def _down(
    fit: Exchange, federation: Federation, server: ServerModel, candidates: int, probe: Probe
) -> Callable[[DrawnState, Turn], Mapping[ClientId, Order]]:
    """``ask``: public questions with answers, and what the server predicts along them, in each client's tokens."""

    def ask(state: DrawnState, turn: Turn) -> Mapping[ClientId, Order]:
        own = state["server"]
        public = drawn(server, own, candidates)
        said, cut = probe.of(server.worker, server_order(own, "read"), own["memory"], public)
        texts = {**whole_texts(public.questions, QUESTIONS), **whole_texts(public.answers, ANSWERS)}
        beside = {
            name: {**texts, **p.prediction_params(in_tokens_of(cuts(server, name, public), cut, said), SERVER)}
            for name in federation.layouts
        }
        orders = {}
        for profile, order in ((one, fit.ask(state, replace(turn, cohort=(one,)))) for one in turn.cohort):
            name = profile.architecture
            settings = {**order[profile.id].settings, "num_tokens": server.students[name].num_tokens}
            params = {**order[profile.id].params, **beside[name]}
            orders[profile.id] = replace(order[profile.id], params=params, settings=settings)
        return orders

    return ask


def _on_client(fit: Exchange, probe: Probe, learning: Callable[..., Worker]) -> Work:
    """``work``: learn from own rows and from the answers that the server knows better; then predict along all."""

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        model, theirs = bare(order, PUBLIC), p.predictions_of(order.params, SERVER)
        public = Drawn([], unpack_texts(order.params, QUESTIONS), unpack_texts(order.params, ANSWERS))
        before, _ = probe.of(client, model, memory, public)
        may = allowed(order.settings.get(TAKEN), len(public.answers))
        lesson = Taught(theirs, better(theirs["losses"], before["losses"]) & may)
        pupil = learning(client, model, memory, public, [lesson], rng=order.rng.child(PUBLIC))
        reply, after = fit.work(pupil, model, memory)
        trained = replace(model, params={**model.params, **reply.params})
        said, _ = probe.of(client, trained, after, public)
        metrics = {**reply.metrics, "learned": lesson.share}
        return replace(reply, params={**reply.params, **p.prediction_params(said, OWN)}, metrics=metrics), after

    return work


def _up(
    fit: Exchange,
    federation: Federation,
    server: ServerModel,
    candidates: int,
    probe: Probe,
    learning: Callable[..., Worker],
) -> Callable[[DrawnState, Iterable[Reply]], DrawnState]:
    """``merge``: the server learns each answer from the client that knows it best, if better than the server itself.

    Parameters
    ----------
    fit
        The exchange in which clients train.
    federation, server
        The clients and the server.
    candidates, probe
        How many questions a round has, and what is asked of a model along their answers.
    learning
        Makes a worker that learns from predictions too.
    """
    architectures = {profile.id: profile.architecture for profile in federation.profiles}

    def merge(state: DrawnState, replies: Iterable[Reply]) -> DrawnState:
        own, taken = state["server"], state.get(TAKEN)
        public, order = drawn(server, own, candidates), server_order(own, "learn")
        best, cut = probe.of(server.worker, order, own["memory"], public)
        wins = torch.zeros(len(public.answers), dtype=torch.bool)
        tokens = {name: cuts(server, name, public) for name in federation.layouts}

        def heard() -> Iterator[Reply]:
            """The replies without predictions, of which the likeliest along each answer are kept."""
            nonlocal best, wins
            for reply in replies:
                theirs = in_tokens_of(cut, tokens[architectures[reply.client]], p.predictions_of(reply.params, OWN))
                may = allowed(None if taken is None else taken.get(str(reply.client), []), len(wins))
                here = better(theirs["losses"], best["losses"]) & may
                best, wins = merged(best, theirs, here), wins | here
                yield bare_reply(reply, PUBLIC)

        averaged: DrawnState = fit.merge(state, heard())
        lesson = Taught(best, wins)
        pupil = learning(server.worker, order, own["memory"], public, [lesson], rng=order.rng.child(PUBLIC))
        fitted = server_fit(pupil, order, own["memory"], range(server.layout.num_layers))
        told = fit_told("server", fitted) | {"server_learned": lesson.share}
        return DrawnState(**{**averaged, "server": after_round(own, fitted.params), "told": told})

    return merge


def _checked(fit: Exchange, probe: Probe) -> Exchange:
    """The exchange that takes replies with predictions, within bounds."""
    inner = reading_bare(fit, PUBLIC)
    assert inner.expects is not None  # an exchange of ``sharing`` has both
    assert inner.metrics is not None
    params, numbers = inner.expects, inner.metrics

    def expects(order: Order) -> Params:
        count, positions, _ = order.params[f"{SERVER}.tokens"].shape
        form = p.no_predictions(count, positions, probe.within(order.settings["num_tokens"]).k)
        return {**params(order), **p.prediction_params(form, OWN)}

    def metrics(order: Order) -> Mapping[str, Range]:
        return {**numbers(order), "learned": Range(0.0, 1.0)}

    def ranges(order: Order) -> Mapping[str, Range]:
        return p.prediction_ranges(order.settings["num_tokens"], OWN)

    return inner._replace(expects=expects, metrics=metrics, ranges=ranges)
