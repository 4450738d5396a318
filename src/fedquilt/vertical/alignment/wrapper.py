"""Any vertical method with an alignment of the parties' rows before they first take part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedquilt.core.errors import TrainingError
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Memory, Order, Reply, Tree, Turn
from fedquilt.vertical.alignment.exchanges import ALIGNED, AlignmentState, IdHolder, alignment_exchanges


def with_alignment(method: Method, kind: str, own: IdHolder | None) -> Method:
    """The method whose parties align their rows before they first take part, and then find them in their memory.

    An exchange of the method involves aligned clients only. Its state finds the active party's rows in
    ``state["alignment"]``, a client's work its own in ``aligned_rows(memory)``.

    Parameters
    ----------
    method
        The method to wrap. Wrappers that change updates (privacy) belong inside.
    kind
        The protocol, a key of ``blinding.BLINDINGS``.
    own
        The active party's ids; None where the method is built for a client.
    """

    def init(rng: Rng) -> Tree:
        none = torch.zeros(0, dtype=torch.int64)
        return {**method.init(rng), "alignment": AlignmentState(rows=none, holds={}, refused={}, pending={})}

    def report(state: Tree) -> Mapping[str, Any]:
        found: AlignmentState = state["alignment"]
        counts = {"active": len(found["rows"]), **{client: int(own.sum()) for client, own in found["holds"].items()}}
        refused = [f"client {client}: {reason}" for client, reason in found["refused"].items()]
        return {**method.report(state), "aligned_rows": counts, **({"not_aligned": refused} if refused else {})}

    exchanges = (*alignment_exchanges(kind, own), *(_of_aligned(exchange) for exchange in method.exchanges))
    closing = tuple(_of_aligned(exchange) for exchange in method.closing)
    return method._replace(init=init, exchanges=exchanges, closing=closing, report=report)


def aligned_rows(memory: Memory) -> Tensor:
    """The party's own rows in the common order, int64 (common rows,); -1 for one that a late party does not hold.

    Raises
    ------
    TrainingError
        if the party was never aligned, or has lost its memory.
    """
    if ALIGNED not in memory:
        raise TrainingError("this party's rows are not aligned, or its memory of it is lost; start a new run")
    rows: Tensor = memory[ALIGNED]
    return rows


def _of_aligned(exchange: Exchange) -> Exchange:
    """The exchange, for clients whose rows are aligned; its merge leaves the alignment as it is."""

    def ask(state: Tree, turn: Turn) -> Mapping[ClientId, Order]:
        known = state["alignment"]["holds"]
        return exchange.ask(state, replace(turn, cohort=tuple(own for own in turn.cohort if str(own.id) in known)))

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        return {**exchange.merge(state, replies), "alignment": state["alignment"]}

    return exchange._replace(ask=ask, merge=merge)
