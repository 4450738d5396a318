"""Exchanges in three messages: embeddings, gradients of a first classifier, and embeddings of the encoders learned.

All that other methods do in the rounds of a run is done between these messages: a party takes the steps of all rounds
on its own rows when it has its gradients, and the active party all steps on aligned rows when it has the last
embeddings. A party that is away is asked again in the next round. Later, only test rows are predicted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NotRequired, cast

import torch
from torch import Tensor

from fedquilt.client.client import Client
from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, Order, Params, Reply, Turn
from fedquilt.core.worker import Worker
from fedquilt.vertical.active import ActiveState, Received, joined, seen_classes
from fedquilt.vertical.clusters import clusters_of
from fedquilt.vertical.exchanges import Exchanges
from fedquilt.vertical.files import held
from fedquilt.vertical.lesson import Facts
from fedquilt.vertical.method import exchanged, vertical_of
from fedquilt.vertical.party import PartyState, chosen_rows, learned_alone, party_of
from fedquilt.vertical.recipe import Recipe
from fedquilt.vertical.telling import COUNTS, EMBEDDINGS, PROTOTYPES, told_by

CLUSTERS = "clusters"
"""The name of the number of clusters among an order's settings, and of their prototypes among a party's tensors."""


_SMALL = 1e-3
"""By how much the first classifier is smaller than one that is to be trained."""


class OneShotState(ActiveState):
    """The state of a method in three messages.

    Attributes
    ----------
    learned
        The parties that have learned from their gradients, by number.
    shown
        What they made of all aligned rows afterwards, (rows, m), by number.
    """

    learned: NotRequired[list[str]]
    shown: NotRequired[dict[str, Tensor]]


class OneShot(Exchanges):
    """The exchanges in three messages; ``recipe.own.extra`` is given the number of clusters for that of classes."""

    @property
    def all_rows(self) -> Tensor:
        """The numbers of all aligned rows, as one minibatch, (1, rows)."""
        return torch.arange(len(self.vertical.labels)).unsqueeze(0)

    def ask_embeddings(self, state: ActiveState, turn: Turn) -> dict[ClientId, Order]:
        """All aligned rows, from every party that has not shown what it makes of them after it has learned."""
        shown, rows = cast(OneShotState, state).get("shown", {}), self.now(state).all_rows.flatten().tolist()
        return {profile.id: Order({}, {"rows": rows}) for profile in turn.cohort if str(profile.id) not in shown}

    def embed(self, worker: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        """As in other methods, with zeros for class prototypes where the party has no labels to learn them from."""
        reply, after = super().embed(worker, order, memory)
        if not reply.params[COUNTS].any():
            reply.params[PROTOTYPES] = torch.zeros_like(reply.params[PROTOTYPES])
        return reply, after

    def merge_embeddings(self, state: ActiveState, replies: Iterable[Reply]) -> ActiveState:
        """Gradients for parties that have not learned, and all steps on aligned rows for those that have."""
        state, arrived = cast(OneShotState, {**state, "predicted": {}}), list(replies)
        now, holds = self.now(state), held(self.vertical, state, shown=False)
        learned = state.get("learned", [])
        first = [reply for reply in arrived if str(reply.client) not in learned]
        last = [reply for reply in arrived if str(reply.client) in learned]
        told = {str(reply.client): told_by(reply.params, self.classes, self.vertical.width) for reply in arrived}
        state["told"] = {**state["told"], **told}
        if last:
            new = {str(reply.client): reply.params[EMBEDDINGS] for reply in last}
            state["shown"] = {**state.get("shown", {}), **new}
            state = now._fitted(state, state["shown"], holds)
        if first:
            parts = {
                reply.client: now._part(state, reply.client, reply.params[EMBEDDINGS], now.all_rows) for reply in first
            }
            state["back"] = now._first_gradients(state, parts, holds)
        state["rows"], state["round"] = now.all_rows, state["round"] + 1
        return state

    def _first_gradients(
        self, state: OneShotState, parts: dict[ClientId, Received], holds: Tensor
    ) -> dict[str, Params]:
        """The gradients of a classifier that has learned nothing: its steps are forgotten.

        Its tensors are small, so that all classes are about as likely, and gradients differ by the rows' classes alone.
        """
        rng, vertical = Rng(state["seed"]).child("first", state["round"]), self.vertical
        fresh = self.recipe.joint.init(len(vertical.parties), self.classes, vertical.width, rng)
        small = {name: _SMALL * tensor for name, tensor in fresh.items()}
        start = cast(ActiveState, {**state, "joint": small, "moments": {}, "rows": self.all_rows})
        return joined(vertical, self.recipe.joint, start, parts, self.counts, holds, 0.0)["back"]

    def _fitted(self, state: OneShotState, shown: dict[str, Tensor], holds: Tensor) -> OneShotState:
        """The state after the steps of all rounds on own rows and on what the parties have shown, in turns."""
        rng, moved = Rng(state["seed"]).child("own"), cast(ActiveState, {**state})
        for number in range(self.active.rounds):
            moved["round"], moved["own"] = number, self._taught(self.active, moved["own"], number, rng, None)
            moved["rows"] = self.rows_of(moved)
            parts = {int(id): self._part(state, int(id), part, moved["rows"]) for id, part in shown.items()}
            moved = joined(self.vertical, self.recipe.joint, moved, parts, self.counts, holds, 0.0)
        return cast(OneShotState, {**moved, "round": state["round"], "back": {}})

    def _part(self, state: ActiveState, party: ClientId, shown: Tensor, rows: Tensor) -> Received:
        """A party's part of the minibatches of ``rows``, from what it has shown of all rows."""
        return Received(shown[rows], state["told"][str(party)])

    # Gradients of what was embedded -------------------------------------------------------------------------------

    def ask_gradients(self, state: ActiveState, turn: Turn) -> dict[ClientId, Order]:
        """The gradients of embeddings alone, and the number of classes among aligned rows."""
        count = int(seen_classes(self.now(state).vertical).sum())
        orders = super().ask_gradients(state, turn)
        return {
            id: Order({EMBEDDINGS: order.params[EMBEDDINGS]}, {**order.settings, CLUSTERS: count})
            for id, order in orders.items()
        }

    def follow(self, worker: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        """Cluster the rows by their gradients, and take the steps of all rounds with the clusters for labels."""
        party, count = self.party(worker, memory), order.settings[CLUSTERS]
        state = self.begun(party, memory, order.rng)
        facts = self._clustered(party, order, self.lacking(memory, shown=False))
        if self.recipe.own and self.recipe.own.extra and "extra" not in state:
            state["extra"] = self.recipe.own.extra(count, self.vertical.width, order.rng.child("extra"))
        for number in range(party.rounds):
            state = self._taught(party, state, number, order.rng, facts)
        return Reply(party.id, {}, party.profile.num_examples), {**memory, **state}

    def _clustered(self, party: Client, order: Order, missing: Tensor | None) -> Facts | None:
        """The aligned rows that the party holds, with their clusters; None if it holds none."""
        numbers, gradients = order.settings["rows"], order.params[EMBEDDINGS].flatten(0, 1).unsqueeze(1)
        rows = chosen_rows(party, numbers)
        told = Facts(rows, gradients, torch.zeros(len(numbers), dtype=torch.long)).of_held(missing, numbers)
        if told is None:
            return None
        found = clusters_of(told.others.squeeze(1), order.settings[CLUSTERS], order.rng.child(CLUSTERS))
        return Facts(told.rows, told.others[:, :0], found)

    def _taught(self, party: Client, state: PartyState, number: int, rng: Rng, facts: Facts | None) -> PartyState:
        """The party after the steps of one round on rows of its own.

        Parameters
        ----------
        party, state
            The party, and what it remembers before.
        number, rng
            The round, which gives the learning rate, and the random stream of all rounds.
        facts
            The clusters of its aligned rows; None for the active party, which has labels.
        """
        if self.recipe.own is None:
            return state
        even = torch.full((self.classes,), 1 / self.classes).double()
        return learned_alone(party, state, self.recipe.own, even, number, rng.child("round", number), facts)

    def forget_gradients(self, state: ActiveState, replies: Iterable[Reply]) -> ActiveState:
        """Remember who has learned."""
        new = [str(reply.client) for reply in replies]
        before = cast(OneShotState, state).get("learned", [])
        return cast(ActiveState, {**state, "back": {}, "learned": [*before, *new]})


def one_shot_method(name: str, federation: Federation, recipe: Recipe) -> Method:
    """The method of a recipe in three messages, for a vertical federation.

    Raises
    ------
    ConfigError
        if the run has one round: the last embeddings are asked for in the second.
    """
    vertical = vertical_of(federation, name)
    active = party_of(vertical.active)
    if active.rounds < 2:
        raise ConfigError(f"rounds = {active.rounds}: method '{name}' asks for its last embeddings in the second round")
    return exchanged(name, OneShot(vertical, recipe, active))
