"""The exchanges of vertical methods: embeddings go up, gradients come down, and test rows are predicted together.

A round carries several minibatches of aligned rows and, before them, several steps of every party on rows of its own,
for a message between sites costs seconds. A row never leaves its party, nor do labels of aligned rows; what does leave
are unit embeddings, gradients of these, prototypes, class priors and counts of labelled rows by class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor

from fedquilt.client.client import Client
from fedquilt.client.workbench import Batch
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, Order, Params, Range, Reply, Turn
from fedquilt.core.vertical import ALIGNED, TEST, Vertical
from fedquilt.core.worker import Worker
from fedquilt.data.table import take
from fedquilt.vertical.active import ActiveState, Received, aligned_prior, joined
from fedquilt.vertical.alignment.wrapper import aligned_rows
from fedquilt.vertical.calibration import calibrated
from fedquilt.vertical.files import as_aligned, blank, held, lacking, resolved
from fedquilt.vertical.lesson import Facts
from fedquilt.vertical.party import (
    PartyState,
    begun,
    chosen_rows,
    embedded,
    followed,
    learned_alone,
    party_of,
)
from fedquilt.vertical.prior import global_prior, mixed
from fedquilt.vertical.recipe import Recipe
from fedquilt.vertical.relay import (
    OTHERS,
    SHOWN,
    averaged,
    facts_of,
    joint_tensors,
    own_facts,
    relay_of,
    shared_of,
    with_relayed,
)
from fedquilt.vertical.telling import (
    EMBEDDINGS,
    LARGE,
    PRIOR,
    PROTOTYPES,
    RANGES,
    kept_by,
    learned_counts,
    told_by,
    told_of,
    told_shapes,
)
from fedquilt.vertical.together import logits_of, predicted

PREDICT = "predict"
"""The name of the exchange in which the parties embed rows that are predicted together."""


@dataclass(frozen=True)
class Exchanges:
    """The functions of the exchanges of one federation."""

    vertical: Vertical
    recipe: Recipe
    active: Client

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.vertical.classes)

    @property
    def size(self) -> int:
        """Rows of a minibatch."""
        return min(self.active.training.batch_size, len(self.vertical.labels))

    @property
    def counts(self) -> Tensor:
        """The active party's own labelled unaligned rows by class, (C,)."""
        return learned_counts(self.active, self.classes, self.recipe.least)

    def now(self, state: ActiveState) -> Self:
        """The same once rows are aligned: the labels, and the rows of the active party, are those of common rows."""
        vertical = resolved(self.vertical, state)
        return replace(self, vertical=vertical, active=party_of(vertical.active))

    def party(self, worker: Worker, memory: Memory) -> Client:
        """A party, with its rows as the alignment has found them."""
        party, halves = party_of(worker), self.vertical.halves
        return party if halves is None else as_aligned(party, aligned_rows(memory), halves)

    def begun(self, party: Client, memory: Memory, rng: Rng) -> PartyState:
        """What a party remembers, see ``party.begun``."""
        return begun(party, memory, (self.classes, self.vertical.width), rng, self.recipe.semantic)

    def lacking(self, memory: Memory, *, shown: bool) -> Tensor | None:
        """Whether a party lacks each aligned row, or each that is ``shown``, (rows,); None where all are held."""
        return None if self.vertical.halves is None else lacking(memory, self.vertical.halves)[int(shown)]

    # Embeddings: each party learns from its own rows, then embeds aligned rows -----------------------------------

    def rows_of(self, state: ActiveState) -> Tensor:
        """The aligned rows of each minibatch of the round, (minibatches, n): one permutation after another."""
        count, wanted = len(self.vertical.labels), self.recipe.minibatches * self.size
        generator = Rng(state["seed"]).child("round", state["round"], "aligned rows").torch()
        passes = -(-wanted // count)
        order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
        return order[:wanted].view(self.recipe.minibatches, self.size)

    def prior_of_all(self, state: ActiveState) -> Tensor:
        """The class prior of all parties' rows, (C,)."""
        told = [state["told"][key] for key in sorted(state["told"], key=int)]
        own = [state["own"]["prior"], *(one["prior"].double() for one in told)]
        sizes = [len(self.active.train["labels"]), *(int(one["counts"].sum()) for one in told)]
        return global_prior(aligned_prior(self.vertical), own, sizes, self.recipe.aligned_share)

    def ask_embeddings(self, state: ActiveState, turn: Turn) -> dict[ClientId, Order]:
        """The aligned rows to embed, and what guides the steps before: the prior, and what is relayed."""
        now = self.now(state)
        rows = [] if self.recipe.alone else now.rows_of(state).flatten().tolist()
        down = {PRIOR: now.prior_of_all(state).float()} if self.recipe.own and not self.recipe.alone else {}
        order = Order({**down, **shared_of(state["joint"], self.recipe.shared)}, {"rows": rows})
        return {profile.id: with_relayed(order, state.get("relay"), profile.id) for profile in turn.cohort}

    def embed(self, worker: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        """Learn from own rows, then embed the rows asked for."""
        weight = worker.profile.num_examples
        if self.recipe.alone:
            return Reply(worker.id, {}, weight), memory
        party, missing = self.party(worker, memory), self.lacking(memory, shown=False)
        state = self.begun(party, memory, order.rng)
        facts, shared = self._facts(party, order, missing), joint_tensors(order.params)
        state = self._learned(party, state, order.params.get(PRIOR), order.round, order.rng, facts, shared)
        up = {EMBEDDINGS: blank(embedded(party, state, chosen_rows(party, order.settings["rows"])), missing, order)}
        up |= joint_tensors(state.get("extra", {})) | told_of(party, state, self.recipe, self.classes)
        return Reply(party.id, up, weight), {**memory, **state}

    def _facts(self, party: Client, order: Order, missing: Tensor | None) -> Facts | None:
        """What an order tells of aligned rows that the party holds; None if it tells nothing."""
        if OTHERS not in order.params:
            return None
        shown = order.settings[SHOWN]
        return facts_of(chosen_rows(party, shown), order.params[OTHERS]).of_held(missing, shown)

    def _learned(
        self,
        party: Client,
        state: PartyState,
        prior: Tensor | None,
        round: int,
        rng: Rng,
        facts: Facts | None = None,
        shared: Params | None = None,
    ) -> PartyState:
        """The party after the round's steps on rows of its own, if the method has them; see ``learned_alone``.

        Parameters
        ----------
        party, state
            The party, and what it remembers before.
        prior
            The class prior of all parties' rows, (C,).
        round, rng
            The round, and the random stream of the steps.
        facts, shared
            What it was told of aligned rows, and the tensors of the joint model that it trains.
        """
        own = self.recipe.own
        if own is None or prior is None:
            return state
        made = {} if own.extra is None else own.extra(self.classes, self.vertical.width, rng.child("extra"))
        if extra := {**made, **state.get("extra", {}), **(shared or {})}:
            state = cast(PartyState, {**state, "extra": extra})
        guide = mixed(state["prior"], prior.double(), self.recipe.local_share)
        return learned_alone(party, state, own, guide, round, rng.child("own"), facts)

    def expected(self, order: Order) -> Params:
        """The shapes of a reply with embeddings."""
        if self.recipe.alone:
            return {}
        up = {EMBEDDINGS: torch.zeros(len(order.settings["rows"]), self.vertical.width)}
        return up | told_shapes(self.recipe, self.classes, self.vertical.width) | joint_tensors(order.params)

    def ranges(self, order: Order) -> dict[str, Range]:
        """The ranges of a reply's tensors."""
        return {**RANGES, **dict.fromkeys(joint_tensors(order.params), Range(-LARGE, LARGE))}

    def merge_embeddings(self, state: ActiveState, replies: Iterable[Reply]) -> ActiveState:
        """Learn from own rows, then from all parties' embeddings."""
        arrived = [] if self.recipe.alone else list(replies)
        received = {reply.client: self._received(reply) for reply in arrived}
        rng, now, names = Rng(state["seed"]).child("round", state["round"]), self.now(state), self.recipe.shared
        prior, rows, aligned = now.prior_of_all(state), now.rows_of(state), now.active.splits[ALIGNED]
        holds = held(self.vertical, state, shown=False)
        facts, shared = own_facts(state.get("relay"), aligned), shared_of(state["joint"], names)
        own = now._learned(now.active, state["own"], prior, state["round"], rng, facts, shared)
        state = cast(ActiveState, {**state, "own": own, "rows": rows})
        if names:
            copies = [(own["extra"], now.active.profile.num_examples), *((one.params, one.weight) for one in arrived)]
            state["joint"] = {**state["joint"], **averaged(copies, names)}
        if self.recipe.relays:
            mine = embedded(now.active, own, take(aligned, rows.flatten()))
            # a row that a party lacks is 0, also if noise was added to what it sent
            parts = {id: one.embeddings.flatten(0, 1) * holds[rows.flatten(), id, None] for id, one in received.items()}
            state["relay"] = relay_of(rows.flatten(), len(self.vertical.parties) - 1, parts, mine)
        after = joined(now.vertical, self.recipe.joint, state, received, now.counts, holds, self.recipe.dropout)
        if found := calibrated(now.vertical, self.recipe.joint, after, received, now.counts, holds):
            after["calibration"] = found
        if self.recipe.selects:
            after["kept"] = kept_by({id: one.told for id, one in received.items()}, own, self.vertical.parties)
        return cast(ActiveState, {**after, "predicted": {}, "round": state["round"] + 1})

    def _received(self, reply: Reply) -> Received:
        embeddings = reply.params[EMBEDDINGS].view(self.recipe.minibatches, -1, self.vertical.width)
        return Received(embeddings, told_by(reply.params, self.classes, self.vertical.width))

    # Gradients of what was embedded -------------------------------------------------------------------------------

    def ask_gradients(self, state: ActiveState, turn: Turn) -> dict[ClientId, Order]:
        """The gradients that each party is owed."""
        rows = state["rows"].flatten().tolist()
        orders = {}
        for profile in turn.cohort:
            gradients = state["back"].get(str(profile.id))
            if gradients is not None:
                down = gradients if self.recipe.prototypes else {EMBEDDINGS: gradients[EMBEDDINGS]}
                orders[profile.id] = Order(down, {"rows": rows})
        return orders

    def follow(self, worker: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        """A step for each minibatch along its gradients."""
        party = self.party(worker, memory)
        state = self.begun(party, memory, order.rng)
        prototypes = order.params.get(PROTOTYPES, torch.zeros_like(state["prototypes"]))
        rows, down = chosen_rows(party, order.settings["rows"]), order.params[EMBEDDINGS]
        down = blank(down.flatten(0, 1), self.lacking(memory, shown=False), order).view_as(down)
        after = followed(party, state, rows, down, prototypes, order.round, order.rng)
        return Reply(party.id, {}, party.profile.num_examples), {**memory, **after}

    def forget_gradients(self, state: ActiveState, replies: Iterable[Reply]) -> ActiveState:
        """No gradient is owed any more."""
        for _ in replies:
            pass
        return cast(ActiveState, {**state, "back": {}})

    # The joint prediction of test rows ----------------------------------------------------------------------------

    def ask_test(self, state: ActiveState, turn: Turn) -> dict[ClientId, Order]:
        """All test rows, in rounds in which they are predicted."""
        count = len(self.now(state).vertical.test_labels)
        if not self.vertical.due(turn.round) or not count:
            return {}
        return {profile.id: Order({}, {"count": count}) for profile in turn.cohort}

    def show_test(self, worker: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        """Embed the test rows."""
        weight = worker.profile.num_examples
        if self.recipe.alone:
            return Reply(worker.id, {}, weight), memory
        party = self.party(worker, memory)
        state = self.begun(party, memory, order.rng)
        shown = blank(embedded(party, state, party.splits[TEST]), self.lacking(memory, shown=True))
        return Reply(party.id, {EMBEDDINGS: shown}, weight), {**memory, **state}

    def expected_test(self, order: Order) -> Params:
        """The shapes of a reply with embeddings of test rows."""
        if self.recipe.alone:
            return {}
        return {EMBEDDINGS: torch.zeros(order.settings["count"], self.vertical.width)}

    def merge_test(self, state: ActiveState, replies: Iterable[Reply]) -> ActiveState:
        """Predict the test rows."""
        received = {one.client: one.params[EMBEDDINGS] for one in replies if not self.recipe.alone}
        now, holds = self.now(state), held(self.vertical, state, shown=True)
        return predicted(
            now.vertical, self.recipe.joint, state, received, now.counts, holds, alike=self.recipe.prototypes
        )

    def logits(self, state: ActiveState, replies: Iterable[Reply], rows: Batch, holds: Tensor) -> Tensor:
        """The joint logits of rows, (n, C), from the other parties' replies about them and the active party's view."""
        received = {one.client: one.params[EMBEDDINGS] for one in replies if not self.recipe.alone}
        now = self.now(state)
        return logits_of(now.vertical, self.recipe.joint, state, received, now.counts, holds, rows)
