"""Exchanges after the last round, for which no quorum is needed: those that close a run, and those of a query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedquilt.core.checks import Check
from fedquilt.core.defence import UNBOUNDED
from fedquilt.core.loop import Send, Traffic, exchanged
from fedquilt.core.method import Exchange, Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Profile, Tree, Turn


def closed(
    method: Method,
    state: Tree,
    profiles: Sequence[Profile],
    send: Send,
    rng: Rng,
    *,
    num_rounds: int,
    check: Check | None = None,
) -> tuple[Traffic, ...]:
    """Run the closing exchanges of ``method`` after its last round, and return their records.

    They involve all of ``profiles`` and do not change the state; their orders bear the round ``num_rounds``, one after
    the last. A client that does not answer is recorded as dropped; no quorum is needed.

    Parameters
    ----------
    method, send, rng, num_rounds, check
        As for ``core.loop.rounds``.
    state
        The state after the last round.
    profiles
        The clients to ask.
    """
    return passed(method.closing, state, Turn(num_rounds, tuple(profiles), rng.child("closing")), send, check)[1]


def passed(
    exchanges: Iterable[Exchange], state: Tree, turn: Turn, send: Send, check: Check | None = None
) -> tuple[Tree, tuple[Traffic, ...]]:
    """Run exchanges one after another, each from the state that the one before has made.

    A client that does not answer is recorded as dropped; no quorum is needed.

    Parameters
    ----------
    exchanges
        The exchanges.
    state, turn
        The state before the first one, and the clients to ask.
    send, check
        As for ``core.loop.rounds``.
    """
    traffic = []
    for exchange in exchanges:
        state, moved = exchanged(exchange, state, turn, send, check, UNBOUNDED, {})
        traffic.append(moved)
    return state, tuple(traffic)
