"""The server's side of a round in which it and its clients teach each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedquilt.core.server import ServerModel, ServerState, fit_told, server_fit, server_next, server_order
from fedquilt.core.types import Order
from fedquilt.core.worker import Worker
from fedquilt.distill.messages import Answer, Offer, Paths, Scalars, as_read, lesson_up, scalars
from fedquilt.distill.paths import Likelihood
from fedquilt.distill.public import drawn
from fedquilt.distill.student import Choice, Teaching, chosen, new_pupil, pupil_of, rated
from fedquilt.distill.verdicts import verdicts

FILTERS = "filters"
"""The key of the server's memory under which it keeps a filter for each client, by the client's number."""


SAID = "said"
"""The key under which it keeps the paths of an endpoint, by the number of their question."""


class Offered(NamedTuple):
    """What the server offers, if anything, and its state with it."""

    offer: Offer | None
    state: ServerState


class Learned(NamedTuple):
    """The server's state after a round, and numbers about it for the record."""

    state: ServerState
    told: dict[str, float]


class Study(NamedTuple):
    """What the server takes of the clients' paths in a round.

    Attributes
    ----------
    choices
        What its filter for each client chose, by the client's number.
    pupil
        The server's worker, which learns from the chosen paths too.
    told
        Numbers for the record.
    """

    choices: dict[str, Choice]
    pupil: Worker
    told: dict[str, float]

    @property
    def taken(self) -> dict[str, list[int]]:
        """The positions of the chosen questions, by client."""
        return {client: choice.positions.tolist() for client, choice in self.choices.items()}


@dataclass(frozen=True)
class Teacher:
    """What the server does with its own model.

    Attributes
    ----------
    server
        Its model and public questions.
    teaching, paths
        How it learns, and how paths are generated.
    learns
        Whether it learns from the clients' paths.
    rounds
        Number of rounds of the run: after the last one it offers nothing.
    """

    server: ServerModel
    teaching: Teaching
    paths: Paths
    learns: bool
    rounds: int

    def offered(self, own: ServerState) -> Offered:
        """Questions of the coming round, drawn without replacement, with the model's paths, by greedy decoding.

        An endpoint is asked each question once: its paths are kept in the server's memory, and so in checkpoints.
        """
        order = server_order(own, "offer")
        numbers, questions, _ = drawn(self.server, own, self.paths.candidates)
        said = dict(own["memory"].get(SAID, {}))
        new = [number for number in numbers if str(number) not in said]
        asked = [self.server.questions.texts[number] for number in new]
        written = self.server.worker.complete(order, own["memory"], asked, new_tokens=self.paths.tokens)
        said |= {str(number): path for number, path in zip(new, as_read(written, self.paths), strict=True)}
        paths = [said[str(number)] for number in numbers]
        right = verdicts(self.server.questions, numbers, paths)
        sure = self._likelihoods(order, own, questions, paths)
        after = server_next(own, memory={**own["memory"], SAID: said}) if self.server.texts_only else own
        return Offered(Offer(numbers=numbers, questions=questions, paths=paths, sure=sure, right=right), after)

    def judged(self, own: ServerState, offer: Offer, paths: list[str]) -> Scalars:
        """The likelihoods of a client's paths under the server's model."""
        return self._likelihoods(server_order(own, "judge"), own, offer["questions"], paths)

    def _likelihoods(self, order: Order, own: ServerState, questions: list[str], paths: list[str]) -> Scalars:
        """The likelihoods of paths under the server's model; 0 of 0 tokens where they are not known."""
        if self.server.texts_only:
            return scalars(Likelihood(torch.zeros(len(paths)), torch.zeros(len(paths), dtype=torch.long)))
        return scalars(Likelihood(*self.server.worker.log_probs(order, own["memory"], questions, paths)))

    def coming(self, own: ServerState, direction: str) -> Offered:
        """The offer of the coming round; None if nobody is taught, or no round comes."""
        return Offered(None, own) if direction == "none" or own["round"] >= self.rounds else self.offered(own)

    def present(self, own: ServerState, offer: Offer | None) -> tuple[Offer, ServerState]:
        """The offer of this round, made now if the run was to end before it."""
        found = Offered(offer, own) if offer is not None else self.offered(own)
        assert found.offer is not None
        return found.offer, found.state

    def study(self, own: ServerState, offer: Offer | None, answers: Mapping[str, Answer]) -> Study:
        """What the server's filters choose of the clients' paths, and the server that learns from them."""
        order, worker, memory = server_order(own, "learn"), self.server.worker, own["memory"]
        filters, told = memory.get(FILTERS, {}), _right("server", None if offer is None else offer["right"])
        choices: dict[str, Choice] = {}
        for client, answer in answers.items() if self.learns else ():
            assert offer is not None  # somebody answered it
            right = verdicts(self.server.questions, offer["numbers"], answer["paths"])
            lesson, state = lesson_up(offer, answer, right), filters.get(client) or new_pupil()
            rng = order.rng.child("teacher", client)
            choices[client] = chosen(worker, order, memory, lesson, state, self.teaching, rng)
            told |= _right(f"client_{client}", right)
        pupil = pupil_of(worker, order, memory, [*choices.values()], self.teaching, order.rng.child("samples"))
        return Study(choices, pupil, told)

    def learned(self, before: ServerState, own: ServerState, study: Study) -> Learned:
        """The state of the server that has learned in a round, once its filters know what their choices were worth.

        If its scheme has not trained it (``own`` has the tensors of ``before``), it learns what it chose now.
        """
        told, memory = dict(study.told), own["memory"]
        if self.server.texts_only:
            return Learned(own, told)
        if own["params"] is before["params"] and study.pupil is not self.server.worker:
            layers = range(self.server.layout.num_layers)
            fitted = server_fit(study.pupil, server_order(before, "learn"), memory, layers)
            own, told = server_next(own, fitted.params), told | fit_told("server", fitted)
        order = server_order(own, "rate")
        filters = dict(memory.get(FILTERS, {}))
        for client, choice in study.choices.items():
            filters[client], about = rated(self.server.worker, order, memory, choice, self.teaching)
            told |= {f"client_{client}_{name}": number for name, number in about.items()}
        return Learned(server_next(own, memory={**memory, FILTERS: filters}), told)


def _right(who: str, right: Tensor | None) -> dict[str, float]:
    """The share of right paths, by its name in the record; nothing where it is not known."""
    return {} if right is None or not len(right) else {f"{who}_right": float(right.float().mean())}
