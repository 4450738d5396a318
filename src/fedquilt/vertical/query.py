"""A query: all parties predict rows of new files, which they find by place or by a private alignment of ids.

    by place   the parties' files have the same rows in one order
    by id      the exchanges of an alignment, in which every passive party is a late one: the rows are the active
               party's, and the others tell which of them they hold

Then each passive party embeds its rows as in an evaluation, and the active one predicts. A party that does not answer
is missing, and one that does not hold a row is missing in that row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TypedDict

import torch
from torch import Tensor

from fedquilt.core.errors import TrainingError
from fedquilt.core.method import Exchange
from fedquilt.core.query import KEY
from fedquilt.core.server import SERVER
from fedquilt.core.types import ClientId, Memory, Order, Params, Reply, Turn
from fedquilt.core.vertical import TEST
from fedquilt.core.worker import Worker
from fedquilt.data.table import Columns, take
from fedquilt.vertical.alignment.exchanges import AlignmentState, IdHolder, alignment_exchanges
from fedquilt.vertical.alignment.rows import common_order
from fedquilt.vertical.alignment.wrapper import aligned_rows
from fedquilt.vertical.files import blank
from fedquilt.vertical.party import party_of


class QueryState(TypedDict):
    """What the active party knows of a query.

    Attributes
    ----------
    alignment
        Its rows, and which of them each passive party holds; by place nobody is in it.
    key
        The query's key, see ``core.query``.
    answers
        The tensors of each passive party's answer, by its number.
    """

    alignment: AlignmentState
    key: str
    answers: dict[str, Params]


def first_query(key: str, count: int, ids: Sequence[str] = ()) -> QueryState:
    """The state of a query about ``count`` rows before its first exchange; with ``ids``, rows are in their order."""
    rows = common_order(range(count), ids) if ids else torch.arange(count)
    # with a holder the alignment takes all others for late, so that each tells which of these rows it holds
    holds = {str(SERVER): torch.ones(count, dtype=torch.bool)}
    alignment = AlignmentState(rows=rows, holds=holds, refused={}, pending={})
    return QueryState(alignment=alignment, key=key, answers={})


def query_exchanges(predict: Exchange, kind: str | None, own: IdHolder | None) -> tuple[Exchange, ...]:
    """The exchanges of a query, for a ``QueryState``.

    Parameters
    ----------
    predict
        The exchange in which the method's parties embed rows that are predicted, for rows that were dealt.
    kind
        The protocol of the alignment, a key of ``blinding.BLINDINGS``; None to find rows by place.
    own
        The ids of the active party's rows; None by place, and where the exchanges are a passive party's.
    """
    aligning = () if kind is None else alignment_exchanges(kind, own)
    return tuple(_keyed(exchange) for exchange in (*aligning, _answer(predict, by_id=kind is not None)))


def held_rows(state: QueryState, parties: int) -> Tensor:
    """Whether each party has each row of the query, boolean (rows, K): the active one has all, others that answered."""
    alignment, answers = state["alignment"], state["answers"]
    whole = torch.ones(len(alignment["rows"]), dtype=torch.bool)
    passive = [alignment["holds"].get(str(id), whole) if str(id) in answers else ~whole for id in range(parties - 1)]
    return torch.stack([*passive, whole], 1)


def asked_rows(rows: Columns, memory: Memory, *, by_id: bool) -> list[str]:
    """A digest of each row of a query as a party's encoder reads it, in their order; empty for one that it lacks.

    Parameters
    ----------
    rows, memory
        The rows of the party's file, and what it remembers, in a query by id with the rows that were found.
    by_id
        Whether rows are found by their ids.
    """
    count = len(rows["labels"])
    places = aligned_rows(memory).tolist() if by_id else range(count)
    parts = [column.detach().contiguous().view(count, -1).numpy() for _, column in sorted(rows.items())]
    return [
        "" if place < 0 else blake2b(b"".join(part[place].tobytes() for part in parts), digest_size=8).hexdigest()
        for place in places
    ]


def _keyed(exchange: Exchange) -> Exchange:
    """The exchange with the query's key in its orders."""

    def ask(state: QueryState, turn: Turn) -> Mapping[ClientId, Order]:
        orders = exchange.ask(state, turn)
        return {id: replace(order, settings={**order.settings, KEY: state["key"]}) for id, order in orders.items()}

    return exchange._replace(ask=ask)


def _answer(predict: Exchange, *, by_id: bool) -> Exchange:
    """The exchange in which the passive parties embed the rows of the query that they hold."""

    def ask(state: QueryState, turn: Turn) -> Mapping[ClientId, Order]:
        order = Order({}, {"count": len(state["alignment"]["rows"])})
        if not predict.expects or not predict.expects(order):
            return {}  # the active party predicts alone
        holds = state["alignment"]["holds"]
        return {own.id: order for own in turn.cohort if not by_id or str(own.id) in holds}

    def work(client: Worker, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        party = party_of(client)
        rows = party.splits[TEST]
        places = aligned_rows(memory) if by_id else torch.arange(len(rows["labels"]))
        if order.settings.get("count") != len(places):
            raise TrainingError(
                f"this party's file of the query has {len(places)} rows, and the active party's has "
                f"{order.settings.get('count')}; both must have the same rows in one order"
            )
        # the first row stands where the party has none, and its embedding is taken out again
        asked = replace(party, splits={**party.splits, TEST: take(rows, places.clamp(min=0))})
        reply, _ = predict.work(asked, order, memory)
        shown = {name: blank(tensor, places < 0) for name, tensor in reply.params.items()}
        return replace(reply, params=shown), memory

    def merge(state: QueryState, replies: Iterable[Reply]) -> QueryState:
        return {**state, "answers": {str(reply.client): reply.params for reply in replies}}

    return predict._replace(name="answer", ask=ask, work=work, merge=merge)
