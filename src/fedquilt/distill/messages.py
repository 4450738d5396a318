"""What teacher and students tell each other in a round: questions, paths, and scalars about paths; nothing else.

Likelihoods travel as two tensors: ``<name>.total``, (paths,) of float32, and ``<name>.tokens``, (paths,) of int32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from fedquilt.core.texts import pack_texts, text_form, text_ranges, unpack_texts, whole_texts
from fedquilt.core.types import Order, Params, Range
from fedquilt.distill.contrast import Pair
from fedquilt.distill.paths import Likelihood
from fedquilt.distill.student import Lesson

LESSON = "lesson"
"""The prefix of all that is part of a lesson, beside the method's own message."""

QUESTIONS, TAUGHT, OWN = "lesson.questions", "lesson.taught", "lesson.own"
"""Questions, the server's paths, and a client's own."""

SURE, PEER, HEARD = "lesson.sure", "lesson.peer", "lesson.heard"
"""Likelihoods of the server's paths under the server's model, of the client's under the server's, and of the server's
under the client's; those of the client's own under its own model bear the name of the paths."""

RIGHT = "lesson.right"
"""Whether each of the server's paths is right."""

LOWEST = -1e6
"""The lowest joint log-probability that a reply may hold."""


class Paths(NamedTuple):
    """How many questions a round has, and how their paths are generated.

    Attributes
    ----------
    candidates
        Number of questions of a round.
    tokens, bytes
        The most tokens of a generated path, and the most bytes of its text.
    temperature
        Of the students' sampling; 0 for greedy decoding.
    """

    candidates: int = 32
    tokens: int = 64
    bytes: int = 256
    temperature: float = 0.7


class Scalars(TypedDict):
    """A ``Likelihood`` as a tree."""

    total: Tensor
    tokens: Tensor


class Offer(TypedDict):
    """What the server offers in a round.

    Attributes
    ----------
    numbers, questions
        The drawn public questions, and their numbers.
    paths, sure
        The server's paths, and their likelihoods under its model.
    right
        Whether each of them is right; None where answers are not known.
    """

    numbers: list[int]
    questions: list[str]
    paths: list[str]
    sure: Scalars
    right: Tensor | None


class Answer(TypedDict):
    """What a client made of an offer.

    Attributes
    ----------
    paths, own
        Its own paths, and their likelihoods under its model.
    heard
        The likelihoods of the server's paths under its model.
    peer
        The likelihoods of its own paths under the server's model.
    """

    paths: list[str]
    own: Scalars
    heard: Scalars
    peer: Scalars


def scalars(likelihood: Likelihood) -> Scalars:
    """The likelihoods as a tree of copies."""
    total, tokens = (part.detach().cpu().clone() for part in likelihood)
    return Scalars(total=total.float(), tokens=tokens.to(torch.int32))


def likelihood_of(found: Scalars) -> Likelihood:
    """The likelihoods of a tree."""
    return Likelihood(found["total"], found["tokens"].long())


def scalar_params(found: Scalars, name: str) -> Params:
    """The likelihoods as tensors of a message."""
    return {f"{name}.total": found["total"], f"{name}.tokens": found["tokens"]}


def scalars_of(params: Mapping[str, Tensor], name: str) -> Scalars:
    """The likelihoods in a message."""
    return Scalars(total=params[f"{name}.total"].clone(), tokens=params[f"{name}.tokens"].clone())


def offer_params(offer: Offer, paths: Paths) -> Params:
    """The server's offer as tensors of an order."""
    right = {} if offer["right"] is None else {RIGHT: offer["right"].to(torch.int32)}
    return {
        **whole_texts(offer["questions"], QUESTIONS),
        **pack_texts(offer["paths"], paths.bytes, TAUGHT),
        **scalar_params(offer["sure"], SURE),
        **right,
    }


def offer_of(params: Mapping[str, Tensor]) -> Offer:
    """The offer in an order; the numbers of its questions are not sent.

    Raises
    ------
    WireError
        if a text has a wrong form.
    """
    right = params.get(RIGHT)
    return Offer(
        numbers=[],
        questions=unpack_texts(params, QUESTIONS),
        paths=unpack_texts(params, TAUGHT),
        sure=scalars_of(params, SURE),
        right=None if right is None else right.bool(),
    )


def as_read(texts: list[str], paths: Paths) -> list[str]:
    """The texts as their reader gets them: no longer than a message takes."""
    return unpack_texts(pack_texts(texts, paths.bytes))


def answer_form(order: Order, paths: Paths) -> Params:
    """Tensors of the form of a client's answer to the offer of an order: for ``Exchange.expects``."""
    count = len(order.params[f"{SURE}.total"])
    empty = Scalars(total=-torch.ones(count), tokens=torch.ones(count, dtype=torch.int32))  # an allowed value
    return {**text_form(count, paths.bytes, OWN), **scalar_params(empty, OWN), **scalar_params(empty, HEARD)}


def answer_ranges(paths: Paths) -> dict[str, Range]:
    """The ranges of a client's answer: for ``Exchange.ranges``."""
    most = 2 * paths.bytes + 8  # more tokens than bytes are odd, but some tokenizers add a few
    of_each = {"total": Range(LOWEST, 1e-3), "tokens": Range(0, most, whole=True)}
    numbers = {f"{name}.{part}": within for name in (OWN, HEARD) for part, within in of_each.items()}
    return {**text_ranges(paths.bytes, OWN), **numbers}


def lesson_down(offer: Offer, own: list[str], peer: Scalars) -> Lesson:
    """What a client is taught: the server's paths beside its own."""
    teacher = Pair(likelihood_of(offer["sure"]), likelihood_of(peer))
    return Lesson(offer["questions"], offer["paths"], own, teacher, offer["right"])


def lesson_up(offer: Offer, answer: Answer, right: Tensor | None) -> Lesson:
    """What the server is taught by a client: the client's paths beside the server's."""
    teacher = Pair(likelihood_of(answer["own"]), likelihood_of(answer["heard"]))
    mine = likelihood_of(offer["sure"])  # by the model that has written them, which has not learned since
    return Lesson(offer["questions"], answer["paths"], offer["paths"], teacher, right, mine)


def has_peer(order: Order) -> bool:
    """Whether an order has what the server makes of the client's paths."""
    return f"{PEER}.total" in order.params
