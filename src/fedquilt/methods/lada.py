"""LaDa: the server's large model and the clients' small ones teach each other reasoning paths that they choose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Literal, TypedDict, get_args

from fedquilt.core.errors import WireError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Beside, Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.server import ServerState, server_start
from fedquilt.core.settings import Count, Few, Kept, Part, Penalty, Positive, Tokens, Unless, With
from fedquilt.core.texts import pack_texts, unpack_texts
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker
from fedquilt.distill import messages as m
from fedquilt.distill.beside import bare, reading_bare
from fedquilt.distill.contrast import Contrast
from fedquilt.distill.messages import Answer, Offer, Paths
from fedquilt.distill.paths import Likelihood
from fedquilt.distill.public import server_of
from fedquilt.distill.reward import Reward
from fedquilt.distill.selection import FilterSettings
from fedquilt.distill.student import Teaching, chosen, new_pupil, pupil_of, rated
from fedquilt.distill.teacher import Teacher
from fedquilt.distill.texts_only import refuse_likelihoods
from fedquilt.distill.told import RANGES
from fedquilt.methods.layered import Weighting
from fedquilt.methods.sharing import sharing
from fedquilt.methods.traits import Traits

Choosing = Literal["learnability", "linear-ucb", "all", "random", "confidence", "loss", "verified"]
Direction = Literal["both", "down", "up", "none"]

_TAUGHT = Unless("direction", "none")
_LEARNS = With("filter", ("learnability", "linear-ucb"))
_CHOOSES = With("filter", tuple(name for name in get_args(Choosing) if name not in ("all", "verified")))

_MEMORY = "lesson"
"""The key of what a client keeps: its filter, and the offer of the round."""

TRAITS = Traits(across=True, merge="own", sends_scores=True, needs_server=True, server_texts=True)


def lada(
    federation: Federation,
    *,
    direction: Direction = "both",
    filter: Annotated[Choosing, _TAUGHT] = "learnability",
    choice: Annotated[Literal["budget", "threshold"], _TAUGHT, _CHOOSES] = "budget",
    share: Annotated[Kept, _TAUGHT, _CHOOSES, With("choice", ("budget",))] = 0.5,
    threshold: Annotated[Part, _TAUGHT, _CHOOSES, With("choice", ("threshold",))] = 0.5,
    explore: Annotated[Penalty, _TAUGHT, _LEARNS] = 0.5,
    warm: Annotated[Few, _TAUGHT, With("filter", ("learnability",))] = 1,
    sample_reward: Annotated[Literal["reliable", "paper"], _TAUGHT, _LEARNS] = "reliable",
    sample_weight: Annotated[Part, _TAUGHT, _LEARNS] = 0.5,
    verified: Annotated[bool, _TAUGHT, Unless("filter", "verified")] = False,
    candidates: Annotated[Count, _TAUGHT] = 32,
    path_tokens: Annotated[Tokens, _TAUGHT] = 64,
    path_bytes: Annotated[Tokens, _TAUGHT] = 256,
    temperature: Annotated[Penalty, _TAUGHT] = 0.7,
    transfer: Annotated[Penalty, _TAUGHT] = 1.0,
    contrast: Annotated[Penalty, _TAUGHT] = 0.1,
    beta: Annotated[Positive, _TAUGHT, Unless("contrast", 0.0)] = 2.0,
    reference: Annotated[Literal["peer", "self"], _TAUGHT, Unless("contrast", 0.0)] = "peer",
    samples: Annotated[Count, _TAUGHT] = 8,
    weighting: Weighting = "examples",
) -> Method:
    """LaDa over federated averaging of the students' adapters within each architecture, see ``with_lada``.

    Parameters
    ----------
    federation : its clients may differ in architecture and tokenizer; the server owns a model and public questions.
    direction : ``down`` teaches clients alone, ``up`` the server alone, ``none`` nobody: all learn from their own rows.
    filter : what chooses samples: ``learnability``, or a control.
    choice : the samples with the largest scores, or all above the threshold.
    share : share of the candidates that is chosen by a budget.
    threshold : score above which a candidate is chosen.
    explore : weight of exploration in the score.
    warm : number of first rounds in which samples are chosen by clusters.
    sample_reward : ``reliable`` by the teacher's likelihood of its own path; ``paper`` by margin and difficulty.
    sample_weight : weight of the sample's reward in a label; the rest is that of the batch's reward.
    verified : never choose a path that ends in a wrong answer.
    candidates : number of public questions of a round, drawn anew in each.
    path_tokens : largest number of tokens of a generated path.
    path_bytes : largest number of bytes of a path's text.
    temperature : of the students' sampling; 0 for greedy decoding, as the server's always is.
    transfer : weight of the loss on the chosen samples beside that on own rows.
    contrast : weight of the contrastive loss beside the supervised one on the teacher's path.
    beta : factor of the margin in the contrastive loss.
    reference : likelihoods are compared with the teacher's (``peer``), or the student's before it learns (``self``).
    samples : number of chosen samples of each teacher in an optimiser step.
    weighting : clients' weights in the means of their adapters.

    Raises
    ------
    ConfigError
        if the server has no rows, or answers are asked for that the public questions do not have.
    """
    choosing = FilterSettings(filter, choice=choice, share=share, threshold=threshold, explore=explore, warm=warm)
    rating = Reward(sample_reward, sample_weight)
    teaching = Teaching(choosing, Contrast(contrast, beta, reference), rating, verified, transfer, samples)
    paths = Paths(candidates, path_tokens, path_bytes, temperature)
    return with_lada(sharing("lada", federation, False, None, weighting), federation, teaching, paths, direction)


class LadaState(TypedDict):
    """What LaDa adds to a state.

    Attributes
    ----------
    server
        The server's model; its memory holds a filter for each client as its teacher.
    offer
        What the server offers in the coming round; None if nobody is taught, and after the last round.
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
    method: Method, federation: Federation, teaching: Teaching, paths: Paths, direction: Direction = "both"
) -> Method:
    """The method whose clients and server also teach each other.

    The exchanges of a round:

    1. ``paths``: the server sends public questions, its own paths and their likelihoods, with the client's model. The
       client generates paths of its own and returns them with the likelihoods of both under its model.
    2. ``fit``, of the method itself: the order also has the client's paths' likelihoods under the server's model. The
       client's filter chooses of the server's paths, and the client's training adds the loss on these; afterwards the
       filter learns what they were worth. The server merges the replies. Then it does the same with its own model and
       the clients' paths, with a filter for each client, and generates the paths of the next round.

    Parameters
    ----------
    method : its clients train in its exchange ``fit``.
    federation : its server owns a model and public questions.
    teaching : how students choose and learn.
    paths : how many questions a round has, and how paths are generated.
    direction : who is taught.
    """
    wanted = "method: right paths are asked for" if teaching.verified or teaching.filter.name == "verified" else ""
    server = server_of(federation, method.name, answered=wanted)
    if server.texts_only:
        refuse_likelihoods(teaching, direction)
    teacher = Teacher(server, teaching, paths, direction in ("both", "up"))

    def init(rng: Rng) -> LadaState:
        own = server_start(teacher.server, rng)
        return {**method.init(rng), **_next(own, {})}

    def _next(own: ServerState, told: dict[str, float]) -> LadaState:
        if direction == "none" or own["round"] >= federation.rounds:  # nobody will be taught
            return LadaState(server=own, offer=None, answers={}, told=told)
        offer, own = teacher.offered(own)
        return LadaState(server=own, offer=offer, answers={}, told=told)

    def learning(exchange: Exchange) -> Exchange:
        def merge(state: LadaState, replies: Iterable[Reply]) -> LadaState:
            merged: LadaState = exchange.merge(state, replies)
            own, told = teacher.learned(merged["server"], merged["offer"], merged["answers"])
            return {**merged, **_next(own, {**merged["told"], **told})}

        return exchange._replace(merge=merge)

    def model(profile: Profile, initial: Params, order: Order, memory: Memory) -> Params:
        return method.model(profile, initial, bare(order, m.LESSON), memory)

    def report(state: Tree) -> Mapping[str, object]:
        return {**method.report(state), **state["told"]}

    exchanges = [
        learning(_taught(exchange, teaching, direction in ("both", "down"))) if exchange.name == "fit" else exchange
        for exchange in method.exchanges
    ]
    if direction != "none":
        exchanges.insert(0, _paths(method, teacher))
    rows = Beside(*(teaching.rows if direction in ("both", way) else 0 for way in ("down", "up")))
    made = method._replace(init=init, exchanges=tuple(exchanges), model=model, report=report, beside=rows)
    return made._replace(server=lambda state: state["server"])


def _paths(method: Method, teacher: Teacher) -> Exchange:
    """The exchange in which the server's paths go down, and the clients' paths and likelihoods come up."""
    paths = teacher.paths

    def ask(state: LadaState, turn: Turn) -> Mapping[ClientId, Order]:
        assert state["offer"] is not None  # somebody is taught
        offer = m.offer_params(state["offer"], paths)
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
        server, offer, answers, unread = state["server"], state["offer"], {}, 0
        assert offer is not None
        for reply in replies:
            try:
                texts = unpack_texts(reply.params, m.OWN)
            except WireError:  # untrusted: a client whose bytes are no text has not answered
                unread += 1
                continue
            own, heard = m.scalars_of(reply.params, m.OWN), m.scalars_of(reply.params, m.HEARD)
            peer = teacher.judged(server, offer, texts)
            answers[str(reply.client)] = Answer(paths=texts, own=own, heard=heard, peer=peer)
        return {**state, "answers": answers, "told": {"unread": float(unread)}}

    return Exchange(
        "paths",
        ask,
        work,
        merge,
        lambda order: m.answer_form(order, paths),
        metrics=lambda order: {},
        ranges=lambda order: m.answer_ranges(paths),
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
            return exchange.work(client, model, memory)
        lesson = m.lesson_down(kept["offer"], kept["paths"], m.scalars_of(order.params, m.PEER))
        before, rng = kept.get("filter") or new_pupil(), order.rng.child("lesson")
        choice = chosen(client, model, memory, lesson, before, teaching, rng)
        pupil = pupil_of(client, model, memory, [choice], teaching, rng.child("samples"))
        reply, after = exchange.work(pupil, model, memory)
        trained = replace(model, params={**model.params, **reply.params})
        own, told = rated(client, trained, after, choice, teaching)
        return replace(reply, metrics={**reply.metrics, **told}), {**after, _MEMORY: {"filter": own}}

    def metrics(order: Order) -> Mapping[str, Range]:
        inner = {} if exchange.metrics is None else exchange.metrics(bare(order, m.LESSON))
        return {**inner, **RANGES} if m.has_peer(order) else inner

    own = reading_bare(exchange, m.LESSON)
    return own._replace(ask=ask, work=work, metrics=own.metrics and metrics)
