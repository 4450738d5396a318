"""The book of a privacy ledger: its entries, and the check of what was read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedquilt.core.types import Memory, Reply, Tree
from fedquilt.privacy.client_files import FORMAT, Kind

KEPT_ROUNDS = 3
"""Number of last rounds of a run whose replies are kept for repeated requests; older rounds are not answered again."""


class Asked(NamedTuple):
    """A request that is answered once: run key, round and exchange."""

    run: str
    round: int
    exchange: str


class Allowance(NamedTuple):
    """The bound on what a client may spend: ``epsilon`` at ``delta``, None for no bound."""

    epsilon: float | None
    delta: float


def empty_book() -> dict[str, Any]:
    """Return a ledger without releases."""
    return {"format": FORMAT, "allowance": None, "releases": []}


def noise_multipliers(book: Mapping[str, Any]) -> list[float]:
    """Return the noise multiplier of every release."""
    return [float(entry["noise_multiplier"]) for entry in book["releases"]]


def asked_of(entry: Mapping[str, Any]) -> Asked:
    """Return the request that this release answered."""
    return Asked(entry["run"], entry["round"], entry["exchange"])


def forget_old(releases: list[dict[str, Any]], run: str) -> list[str]:
    """Take the files of a run's older rounds out of their entries, and return the names of these files."""
    own = [entry for entry in releases if entry["run"] == run and entry["file"] is not None]
    rounds = {entry["round"] for entry in own}
    kept = {*sorted(rounds)[-KEPT_ROUNDS:]}
    old = [entry for entry in own if entry["round"] not in kept]
    names = [entry["file"] for entry in old]
    for entry in old:
        entry |= {"file": None, "sha256": None}
    return names


def as_tree(reply: Reply, memory: Memory) -> Tree:
    """Return a release as the tree that is written to disk."""
    return {
        "client": reply.client,
        "params": dict(reply.params),
        "weight": reply.weight,
        "metrics": dict(reply.metrics),
        "round": reply.round,
        "memory": memory,
    }


def from_tree(tree: Tree) -> tuple[Reply, Memory]:
    """Return the reply and the memory of a release that was written to disk."""
    return Reply(tree["client"], tree["params"], tree["weight"], tree["metrics"], tree["round"]), tree["memory"]


def _check(book: Any) -> None:
    for entry in book["releases"]:
        if not (math.isfinite(entry["noise_multiplier"]) and entry["noise_multiplier"] >= 0 and asked_of(entry)):
            raise ValueError(f"the release {entry}")
    if book["allowance"] is not None:
        Allowance(book["allowance"]["epsilon"], float(book["allowance"]["delta"]))


LEDGER = Kind("ledger", _check, "nothing is released", "the epsilon that this client has spent is unknown")
