"""A method whose server trains a model of its own and sends one number, and whose clients answer its questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

import torch

from fedquilt.core.federation import Federation
from fedquilt.core.method import Exchange, Method, overlay_own
from fedquilt.core.rng import Rng
from fedquilt.core.server import ServerState, after_round, server_order, server_start
from fedquilt.core.texts import pack_texts, text_form, text_ranges, unpack_texts
from fedquilt.core.types import ClientId, Memory, Order, Params, Profile, Range, Reply, Tree, Turn
from fedquilt.core.worker import Worker
from fedquilt.methods.traits import Traits

ASKED, QUESTION, ANSWER = 3, 64, 24
"""Questions that are sent, and the most bytes of a question and of an answer."""

TRAITS = Traits(across=True, merge="own", needs_server=True)


class Teaching(TypedDict):
    """The server's model, and the loss of its last training, which it tells the clients."""

    server: ServerState
    loss: float


def teaching(federation: Federation) -> Method:
    """The method; clients learn from their own answers and from their rows, and keep what they learned."""
    server = federation.server
    assert server is not None

    def init(rng: Rng) -> Teaching:
        return Teaching(server=server_start(server, rng), loss=0.0)

    def ask(state: Teaching, turn: Turn) -> Mapping[ClientId, Order]:
        questions = pack_texts(server.questions.texts[:ASKED], QUESTION, "questions")
        return {profile.id: Order(questions, {"loss": state["loss"]}) for profile in turn.cohort}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        questions = unpack_texts(order.params, "questions")
        model = Order({}, round=order.round, rng=order.rng)
        layers = range(client.profile.budget.layers)
        learned = client.fit(model, memory, layers)
        memory = {**memory, "params": {**memory.get("params", {}), **learned.params}}
        answers = client.complete(model, memory, questions, new_tokens=4)
        taught = client.posing(questions, answers).fit(model, memory, layers)
        total, tokens = client.log_probs(model, memory, questions, answers)
        sent = {**pack_texts(answers, ANSWER, "answers"), "log_probs": total / tokens.clamp(min=1)}
        metrics = {"loss": learned.metrics.get("loss", 0.0), "told": float(order.settings["loss"])}
        memory = {**memory, "params": {**memory["params"], **taught.params}}
        return Reply(client.id, sent, float(client.profile.num_examples), metrics), memory

    def merge(state: Teaching, replies: Iterable[Reply]) -> Teaching:
        answers = [unpack_texts(reply.params, "answers") for reply in replies]
        own = state["server"]
        fitted = server.worker.fit(server_order(own, "fit"), own["memory"], range(server.layout.num_layers))
        memory = {**own["memory"], "answers": own["memory"].get("answers", 0) + sum(map(len, answers))}
        return Teaching(server=after_round(own, fitted.params, memory), loss=fitted.metrics["loss"])

    def view(state: Teaching, profile: Profile) -> Order:
        return Order({})

    def expects(order: Order) -> Params:
        return {**text_form(ASKED, ANSWER, "answers"), "log_probs": torch.zeros(ASKED)}

    def ranges(order: Order) -> Mapping[str, Range]:
        return {**text_ranges(ANSWER, "answers"), "log_probs": Range(-1e4, 0.0)}

    def told(state: Tree) -> Mapping[str, float]:
        return {"server_loss": state["loss"]}

    exchange = Exchange("answer", ask, work, merge, expects, ranges=ranges)
    return Method(
        "teaching",
        init,
        (exchange,),
        view,
        model=overlay_own,
        report=told,
        server=lambda state: state["server"],
    )
