"""FedCoT: the server's large model writes rationales and labels, which the clients' small models learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch

from fedquilt.core.errors import ConfigError, WireError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Beside, Exchange, Method, overlay_own
from fedquilt.core.rng import Rng
from fedquilt.core.server import ServerModel, ServerState, after_round, server_order, server_start
from fedquilt.core.settings import Count, Part, Penalty, Tokens, Unless, With
from fedquilt.core.texts import pack_texts, text_form, text_ranges, unpack_texts, whole_texts
from fedquilt.core.types import ClientId, Memory, Order, Params, Reply, Turn
from fedquilt.core.worker import Worker
from fedquilt.distill.beside import bare, reading_bare
from fedquilt.distill.public import OFFER, TAKEN, OfferedState, allowed, drawn, server_of
from fedquilt.distill.rationales import Rationales, instructed
from fedquilt.methods.layered import Weighting
from fedquilt.methods.sharing import averaging
from fedquilt.methods.traits import Traits
from fedquilt.metrics.answers import answer_start

TRAITS = Traits(across=True, merge="own", sends_scores=True, needs_server=True, server_texts=True)

PREFIX = "rationale"
QUESTIONS, PATHS, STARTS = (f"{PREFIX}.{what}" for what in ("questions", "paths", "starts"))
"""Questions, the server's rationales with labels, and the places at which labels begin."""


class FedCoTState(OfferedState):
    """The server's state.

    Attributes
    ----------
    params
        The clients' adapters by architecture; those that training starts from where they are not averaged.
    server
        The server's own model, which does not learn.
    asked
        The questions that clients sent in this round, by their number; empty between rounds.
    """

    params: Params
    server: ServerState
    asked: dict[str, list[str]]


def fedcot(
    federation: Federation,
    *,
    questions: Literal["public", "private"] = "public",
    candidates: Count = 32,
    path_tokens: Tokens = 64,
    path_bytes: Tokens = 256,
    rationale: Annotated[Part, Unless("transfer", 0.0)] = 0.5,
    transfer: Penalty = 1.0,
    samples: Count = 8,
    average: bool = True,
    weighting: Annotated[Weighting, With("average", (True,))] = "examples",
) -> Method:
    """Distillation of the server's rationales and labels into the clients' models.

    In a round the server draws public questions and writes a path for each: a rationale that ends in a label. Clients
    train on their own rows and on these, with ``rationale`` of the loss for rationales and the rest for labels. With
    ``questions = "private"`` clients first send questions of their own rows, and get paths for these.

    Parameters
    ----------
    federation : its clients may differ in architecture; the server owns a model and public questions.
    questions : which questions the server answers.
    candidates : number of questions of a round, drawn anew in each; of every client, if they are private.
    path_tokens : largest number of tokens of a path.
    path_bytes : largest number of bytes of a path's text, and of a private question.
    rationale : weight of rationales against labels.
    transfer : weight of the loss on paths beside that on own rows.
    samples : number of paths in an optimiser step.
    average : average the clients' adapters within each architecture; else each client keeps its own.
    weighting : clients' weights in these means.

    Raises
    ------
    ConfigError
        if the server has no model, or private questions are asked for and must not travel, or not to an endpoint.
    """
    server = server_of(federation, "fedcot", trains=False)
    if questions == "private":
        _refuse_private(server)
    clients = averaging("fedcot", federation, weighting, average=average)
    (fit,) = clients.exchanges
    learning = partial(instructed, rationale=rationale, weight=transfer, batch_size=samples)

    def init(rng: Rng) -> FedCoTState:
        return FedCoTState(params=clients.init(rng)["params"], server=server_start(server, rng), asked={})

    def ask(state: FedCoTState, turn: Turn) -> Mapping[ClientId, Order]:
        own, orders, told = state["server"], fit.ask(state, turn), dict[ClientId, Params]()
        if questions == "private":
            for client in orders:
                asked = state["asked"].get(str(client), [])
                paths = _written(server, own, asked, path_tokens)
                told[client] = {**pack_texts(asked, path_bytes, QUESTIONS), **_paths(server, paths, path_bytes)}
        else:
            public, offer = drawn(server, own, candidates).questions, state.get(OFFER)
            paths = offer["paths"] if offer else _written(server, own, public, path_tokens)
            texts = {**whole_texts(public, QUESTIONS), **_paths(server, paths, path_bytes)}
            told = dict.fromkeys(orders, texts)
        return {client: replace(order, params={**order.params, **told[client]}) for client, order in orders.items()}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        model = bare(order, PREFIX)
        asked, paths = unpack_texts(order.params, QUESTIONS), unpack_texts(order.params, PATHS)
        written = Rationales(asked, paths, order.params[STARTS].tolist())
        said = torch.tensor([bool(path) for path in paths], dtype=torch.bool)
        chosen = (said & allowed(order.settings.get(TAKEN), len(paths))).nonzero()[:, 0]
        pupil = learning(client, model, memory, written, chosen, rng=order.rng.child(PREFIX))
        return fit.work(pupil, model, memory)

    def merge(state: FedCoTState, replies: Iterable[Reply]) -> FedCoTState:
        averaged: FedCoTState = fit.merge(state, replies)
        return FedCoTState(**{**averaged, "server": after_round(averaged["server"]), "asked": {}})

    exchange = reading_bare(fit, PREFIX)._replace(ask=ask, work=work, merge=merge)
    first = (_asking(candidates, path_bytes),) if questions == "private" else ()
    made = clients._replace(init=init, exchanges=(*first, exchange), model=overlay_own, beside=Beside(samples))
    return made._replace(server=lambda state: state["server"])


def _refuse_private(server: ServerModel) -> None:
    """Raise ConfigError if clients' own questions must not travel, or would travel on to an endpoint."""
    if server.share != "private":
        raise ConfigError("method.questions = 'private': server.share = 'public' does not let them out; change either")
    if server.texts_only:
        raise ConfigError(
            "method.questions = 'private': server.endpoint would be told clients' own questions; set it to 'public', "
            "or give [server.model]"
        )


def _written(server: ServerModel, own: ServerState, asked: list[str], tokens: int) -> list[str]:
    """What the server writes for these questions; nothing for an empty one."""
    some = [question for question in asked if question]
    written = server.worker.complete(server_order(own, "offer"), own["memory"], some, new_tokens=tokens)
    path_of = dict(zip(some, written, strict=True))
    return [path_of.get(question, "") for question in asked]


def _paths(server: ServerModel, written: list[str], most: int) -> Params:
    """The server's paths as tensors of an order, with the places at which their labels begin."""
    sent = pack_texts(written, most, PATHS)
    starts = [answer_start(server.questions.kind, path) for path in unpack_texts(sent, PATHS)]
    return {**sent, STARTS: torch.tensor(starts, dtype=torch.int32)}


def _asking(candidates: int, most: int) -> Exchange:
    """The exchange in which clients send questions of their own rows, and empty ones if they have fewer."""

    def ask(state: FedCoTState, turn: Turn) -> Mapping[ClientId, Order]:
        return {one.id: Order({}, {"count": candidates}) for one in turn.cohort}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        asked = client.own_prompts(order.settings["count"], order.rng.child(QUESTIONS))
        asked += [""] * (order.settings["count"] - len(asked))
        return Reply(client.id, pack_texts(asked, most, QUESTIONS), float(client.profile.num_examples)), memory

    def merge(state: FedCoTState, replies: Iterable[Reply]) -> FedCoTState:
        asked: dict[str, list[str]] = {}
        for reply in replies:
            try:
                asked[str(reply.client)] = unpack_texts(reply.params, QUESTIONS)
            except WireError:  # untrusted: who sends no text has asked nothing
                asked[str(reply.client)] = []
        return FedCoTState(**{**state, "asked": asked})

    def expects(order: Order) -> Params:
        return text_form(order.settings["count"], most, QUESTIONS)

    return Exchange(
        "questions",
        ask,
        work,
        merge,
        expects,
        metrics=lambda order: {},
        ranges=lambda order: text_ranges(most, QUESTIONS),
    )
