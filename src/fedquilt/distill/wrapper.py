"""The wrapper of a scheme whose clients and server also teach each other reasoning paths that they choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, TypedDict

from fedquilt.core.errors import WireError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Beside, Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.server import ServerState, after_round, fit_told, server_fit, server_order, server_start
from fedquilt.core.texts import pack_texts, unpack_texts
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker
from fedquilt.distill import messages as m
from fedquilt.distill.beside import bare, reading_bare
from fedquilt.distill.messages import Answer, Offer, Paths
from fedquilt.distill.paths import Likelihood
from fedquilt.distill.public import TAKEN
from fedquilt.distill.student import Teaching, chosen, new_pupil, pupil_of, rated
from fedquilt.distill.teacher import Teacher
from fedquilt.distill.told import RANGES

Scheme = Callable[[Federation], Method]
"""Makes the method that is taught; its last exchange is ``fit``."""

Direction = Literal["both", "down", "up", "none"]

_MEMORY = "lesson"
"""The key of what a client keeps: its filter, and the offer of the round."""


class LadaState(TypedDict):
    """What LaDa adds to a state.

    Attributes
    ----------
    server
        The server's model; its memory holds a filter for each client as its teacher.
    offer
        What the server offers in the coming round; None if nobody is taught.
    answers
        What clients answered in this round, by their number; empty between rounds.
    told
        Numbers about the last round, for its record.
    """

    server: ServerState
    offer: Offer | None
    answers: dict[str, Answer]
    told: dict[str, float]


def with_lada(
    scheme: Scheme, federation: Federation, teaching: Teaching, paths: Paths, direction: Direction = "both"
) -> Method:
    """The method whose clients and server also teach each other.

    The exchanges of a round:

    1. ``paths``: the server sends public questions, its own paths and their likelihoods, with the client's model. The
       client generates paths of its own and returns them with the likelihoods of both under its model.
    2. ``fit``, of the scheme itself: the order also has the client's paths' likelihoods under the server's model. The
       client's filter chooses of the server's paths, and the client's training adds the loss on these; afterwards the
       filter learns what they were worth. Then the server does the same with its own model and the clients' paths, with
       a filter for each client, as part of its training in the scheme, and generates the paths of the next round.

    What a scheme itself transfers along public questions, it transfers of chosen ones alone, see ``public.TAKEN``.

    Parameters
    ----------
    scheme : makes the method, whose clients train in its exchange ``fit``. It is made anew for every round, with a
        server that learns from paths too. If its server has no model of its own, the server trains on its own rows; if
        it does not train its model, the server does so when it has chosen paths. It draws as many public questions as
        there are candidates, or none.
    federation : its server owns a model and public questions.
    teaching : how students choose and learn.
    paths : how many questions a round has, and how paths are generated.
    direction : who is taught.
    """
    server = federation.server
    assert server is not None  # see ``public.server_of``
    method = _with_server(scheme, federation, server.worker)
    teacher = Teacher(server, teaching, paths, direction in ("both", "up"), federation.rounds)

    def init(rng: Rng) -> LadaState:
        state = method.init(rng)
        offer, own = teacher.coming(state["server"], direction)
        return LadaState(**{**state, "server": own, "offer": offer, "answers": {}, "told": state.get("told", {})})

    def merge(state: LadaState, replies: Iterable[Reply]) -> LadaState:
        study = teacher.study(state["server"], state["offer"], state["answers"])
        taken = {TAKEN: study.taken} if teacher.learns else {}
        (fit,) = _with_server(scheme, federation, study.pupil).exchanges[-1:]
        merged = fit.merge({**state, **taken}, replies)
        own, about = teacher.learned(state["server"], merged["server"], study)
        told = {**state["told"], **merged["told"], **about}
        kept = {name: value for name, value in merged.items() if name != TAKEN}
        offer, own = teacher.coming(own, direction)
        return LadaState(**{**kept, "server": own, "offer": offer, "answers": {}, "told": told})

    def report(state: Tree) -> Mapping[str, object]:
        return {**method.report(state), **state["told"]}

    def model(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
        return method.model(profile, initial, bare(order, m.LESSON), memory)

    *before, fit = method.exchanges
    learning = _taught(fit, teaching, direction in ("both", "down"))._replace(merge=merge)
    first = [] if direction == "none" else [_paths(method, teacher)]
    down, up = (teaching.rows if direction in ("both", way) else 0 for way in ("down", "up"))
    scheme_rows = method.beside
    rows = Beside(max(down, scheme_rows.client), scheme_rows.server, max(up, scheme_rows.each))
    made = method._replace(init=init, exchanges=(*first, *before, learning), model=model)
    return made._replace(report=report, beside=rows)


def _with_server(scheme: Scheme, federation: Federation, worker: Worker) -> Method:
    """The scheme with this worker as the server's; if its server has no model, one that trains on its own rows.

    Raises
    ------
    ValueError
        if its last exchange is not ``fit``.
    """
    assert federation.server is not None  # ``with_lada`` asks for it
    server = replace(federation.server, worker=worker)
    method = scheme(replace(federation, server=server))
    fit = method.exchanges[-1]
    if fit.name != "fit":
        raise ValueError(f"the last exchange of a scheme must be 'fit', in which clients learn, and not '{fit.name}'")
    if method.server is not None:
        return method

    def init(rng: Rng) -> Tree:
        return {**method.init(rng), "server": server_start(server, rng), "told": {}}

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        merged, own = fit.merge(state, replies), state["server"]
        if server.texts_only:
            return {**merged, "server": after_round(own), "told": {}}
        layers = range(server.layout.num_layers)
        fitted = server_fit(server.worker, server_order(own, "learn"), own["memory"], layers)
        return {**merged, "server": after_round(own, fitted.params), "told": fit_told("server", fitted)}

    return method._replace(
        init=init,
        exchanges=(*method.exchanges[:-1], fit._replace(merge=merge)),
        server=lambda state: state["server"],
    )


def _paths(method: Method, teacher: Teacher) -> Exchange:
    """The exchange in which the server's paths go down, and the clients' paths and likelihoods come up."""
    paths = teacher.paths

    def ask(state: LadaState, turn: Turn) -> Mapping[ClientId, Order]:
        offer = m.offer_params(teacher.present(state["server"], state["offer"])[0], paths)
        views = {profile.id: method.view(state, profile) for profile in turn.cohort}
        return {client: replace(view, params={**view.params, **offer}) for client, view in views.items()}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        model, offer = bare(order, m.LESSON), m.offer_of(order.params)
        questions, hot = offer["questions"], paths.temperature
        said = client.complete(model, memory, questions, new_tokens=paths.tokens, temperature=hot)
        said = m.as_read(said, paths)
        own, heard = (
            m.scalars(Likelihood(*client.log_probs(model, memory, questions, texts)))
            for texts in (said, offer["paths"])
        )
        texts = pack_texts(said, paths.bytes, m.OWN)
        sent = {**texts, **m.scalar_params(own, m.OWN), **m.scalar_params(heard, m.HEARD)}
        kept = {**memory.get(_MEMORY, {}), "offer": offer, "paths": said, "round": order.round}
        return Reply(client.id, sent, float(client.profile.num_examples)), {**memory, _MEMORY: kept}

    def merge(state: LadaState, replies: Iterable[Reply]) -> LadaState:
        answers, unread = {}, 0
        offer, server = teacher.present(state["server"], state["offer"])
        for reply in replies:
            try:
                texts = unpack_texts(reply.params, m.OWN)
            except WireError:  # untrusted: a client whose bytes are no text has not answered
                unread += 1
                continue
            own, heard = m.scalars_of(reply.params, m.OWN), m.scalars_of(reply.params, m.HEARD)
            peer = teacher.judged(server, offer, texts)
            answers[str(reply.client)] = Answer(paths=texts, own=own, heard=heard, peer=peer)
        told = {"unread": float(unread)}
        return LadaState(**{**state, "server": server, "offer": offer, "answers": answers, "told": told})

    return Exchange(
        "paths",
        ask,
        work,
        merge,
        lambda order: m.answer_form(order, paths),
        metrics=lambda order: {},
        ranges=lambda order: m.answer_ranges(paths),
        keeps=True,
    )


def _taught(exchange: Exchange, teaching: Teaching, taught: bool) -> Exchange:
    """The method's own training, in which clients also learn from the paths that their filters choose."""
    if not taught:
        return exchange

    def ask(state: LadaState, turn: Turn) -> Mapping[ClientId, Order]:
        orders, answers = exchange.ask(state, turn), state["answers"]
        peer = {
            client: m.scalar_params(answers[str(client)]["peer"], m.PEER) for client in orders if str(client) in answers
        }
        return {
            client: replace(order, params={**order.params, **peer.get(client, {})}) for client, order in orders.items()
        }

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        model, kept = bare(order, m.LESSON), memory.get(_MEMORY, {})
        if kept.get("round") != order.round or not m.has_peer(order):  # it did not answer in this round
            return exchange.work(client, _limited(model, []), memory)
        lesson = m.lesson_down(kept["offer"], kept["paths"], m.scalars_of(order.params, m.PEER))
        before, rng = kept.get("filter") or new_pupil(), order.rng.child("lesson")
        choice = chosen(client, model, memory, lesson, before, teaching, rng)
        pupil = pupil_of(client, model, memory, [choice], teaching, rng.child("samples"))
        reply, after = exchange.work(pupil, _limited(model, choice.positions.tolist()), memory)
        trained = replace(model, params={**model.params, **reply.params})
        own, told = rated(client, trained, after, choice, teaching)
        return replace(reply, metrics={**reply.metrics, **told}), {**after, _MEMORY: {"filter": own}}

    def metrics(order: Order) -> Mapping[str, Range]:
        inner = {} if exchange.metrics is None else exchange.metrics(bare(order, m.LESSON))
        return {**inner, **RANGES} if m.has_peer(order) else inner

    own = reading_bare(exchange, m.LESSON)
    return own._replace(ask=ask, work=work, metrics=own.metrics and metrics)


def _limited(order: Order, taken: list[int]) -> Order:
    """The order by which a scheme transfers these of the drawn questions alone."""
    return replace(order, settings={**order.settings, TAKEN: taken})
