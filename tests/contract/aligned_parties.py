"""Parties with ids and nothing else, and a method that only looks at which rows they have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from promises import Setup

from fedquilt.core.method import Exchange, Method
from fedquilt.core.types import Budget, Memory, Order, Profile, Reply, Tree, Turn
from fedquilt.vertical.alignment.exchanges import Held
from fedquilt.vertical.alignment.wrapper import aligned_rows, with_alignment

KEY = b"shared by the parties, 32 bytes!"


@dataclass(frozen=True)
class Party:
    """A client that holds the ids of its file's rows."""

    id: int
    ids: Sequence[str]
    id_key: bytes = KEY


def counting() -> Method:
    """The server learns how many aligned rows each client that it asked has."""

    def ask(state: Tree, turn: Turn) -> Mapping[int, Order]:
        return {profile.id: Order({}) for profile in turn.cohort}

    def work(client: Party, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        return Reply(client.id, {"rows": torch.tensor([float(len(aligned_rows(memory)))])}, 1.0), memory

    def merge(state: Tree, replies: Iterable[Reply]) -> Tree:
        return {"counted": {str(reply.client): float(reply.params["rows"]) for reply in replies}}

    def expects(order: Order) -> dict[str, torch.Tensor]:
        return {"rows": torch.zeros(1)}

    exchange = Exchange("count", ask, work, merge, expects)
    return Method("counting", lambda rng: {"counted": {}}, (exchange,), lambda state, profile: Order({}))


def scene(kind: str, active: Sequence[str], *passive: Sequence[str]) -> Setup:
    """The active party's ids and those of each client, as a federation."""
    clients = {number: Party(number, ids) for number, ids in enumerate(passive)}
    profiles = tuple(Profile(k, len(own.ids), "none", Budget(0), "rows") for k, own in clients.items())
    return Setup(with_alignment(counting(), kind, Held(active, KEY)), profiles, clients)
