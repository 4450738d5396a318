"""The file in which a client notes what it has given away: its entries, reading it checked, and the lock on it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedquilt.core.errors import RunError
from fedquilt.core.types import Memory, Reply, Tree

KEPT_ROUNDS = 3
"""Rounds of a run whose replies are kept to be sent again; older ones are not answered a second time."""


BOOK, _FORMAT = "ledger.json", 1


class Asked(NamedTuple):
    """What is answered once."""

    run: str
    round: int
    exchange: str


class Allowance(NamedTuple):
    """All that a client gives away: ``epsilon`` at ``delta``, None for no bound."""

    epsilon: float | None
    delta: float


def empty_book() -> dict[str, Any]:
    """A ledger without releases."""
    return {"format": _FORMAT, "allowance": None, "releases": []}


def noise_multipliers(book: Mapping[str, Any]) -> list[float]:
    """The noise multiplier of every release."""
    return [float(entry["noise_multiplier"]) for entry in book["releases"]]


def asked_of(entry: Mapping[str, Any]) -> Asked:
    """What was asked when this release was made."""
    return Asked(entry["run"], entry["round"], entry["exchange"])


def forget_old(releases: list[dict[str, Any]], run: str) -> list[str]:
    """The files of this run's rounds that are kept no longer; their entries stay, without a file."""
    own = [entry for entry in releases if entry["run"] == run and entry["file"] is not None]
    rounds = {entry["round"] for entry in own}
    kept = {*sorted(rounds)[-KEPT_ROUNDS:]}
    old = [entry for entry in own if entry["round"] not in kept]
    names = [entry["file"] for entry in old]
    for entry in old:
        entry |= {"file": None, "sha256": None}
    return names


def as_tree(reply: Reply, memory: Memory) -> Tree:
    """A release as it is kept on the disk."""
    return {
        "client": reply.client,
        "params": dict(reply.params),
        "weight": reply.weight,
        "metrics": dict(reply.metrics),
        "round": reply.round,
        "memory": memory,
    }


def from_tree(tree: Tree) -> tuple[Reply, Memory]:
    """The reply and the memory of a release that was kept."""
    return Reply(tree["client"], tree["params"], tree["weight"], tree["metrics"], tree["round"]), tree["memory"]


def checked_book(text: str, path: Path) -> dict[str, Any]:
    """The ledger in a file; without one that can be read nothing may be released."""
    try:
        book = json.loads(text)
        if book["format"] != _FORMAT:
            raise ValueError(f"format {book['format']}")
        for entry in book["releases"]:
            if not (math.isfinite(entry["noise_multiplier"]) and entry["noise_multiplier"] >= 0 and asked_of(entry)):
                raise ValueError(f"the release {entry}")
        if book["allowance"] is not None:
            Allowance(book["allowance"]["epsilon"], float(book["allowance"]["delta"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path}: damaged ({error}); what this client has given away is not known, so nothing is released; restore "
            "the file from a copy"
        ) from error
    return dict(book)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else in this block: two processes of a node may work for two runs at a time."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.name != "nt":  # Windows has no flock; a node there works for one run at a time
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
