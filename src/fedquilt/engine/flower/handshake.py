"""What clients announce before training, and the server's check of it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from fedquilt.core.types import Layout, Profile

Card = Mapping[str, Any]
"""What a client announces before training: numbers, strings, and digests by name."""

_WORDS = {
    "partition": "partition-id",
    "group": "group",
    "architecture": "architecture",
    "base": "base model's weights",
    "layout": "adapter names and shapes",
    "task": "task",
    "num_examples": "number of training examples",
    "budget": "budget in layers",
    "rank": "rank of its adapters",
    "exchanges": "exchanges of the method",
}


def card(
    profile: Profile,
    exchanges: tuple[str, ...],
    *,
    layout: Layout | None = None,
    base: str = "",
    sections: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the card that the client of ``profile`` must announce.

    Parameters
    ----------
    profile
        The client's profile; with 0 examples, the card matches any number of examples.
    exchanges
        The names of the method's exchanges.
    layout
        The names and shapes of the client's trainable tensors.
    base
        The digest of the frozen weights.
    sections
        The parts of the run file that determine the client's work; the card holds their digests.
    """
    shapes = {} if layout is None else {name: list(shape) for name, shape in layout.shapes.items()}
    return {
        "partition": profile.id,
        "group": profile.group,
        "architecture": profile.architecture,
        "base": base[:16],
        "layout": _digest(shapes),
        "task": profile.task,
        "num_examples": profile.num_examples or None,
        "budget": profile.budget.layers,
        "rank": profile.budget.rank,
        "exchanges": list(exchanges),
        "sections": {name: _digest(value) for name, value in (sections or {}).items()},
    }


def mismatches(announced: Card, wanted: Card) -> list[str]:
    """Return in words how a client's announcement differs from the expected card; empty if it matches."""
    found = []
    for key, words in _WORDS.items():
        if key == "num_examples" and wanted[key] is None:
            if examples(announced) is None:
                found.append(f"its {words} is {_shown(announced.get(key))}, not a whole number from 1 to 2^48")
        elif announced.get(key) != wanted[key]:
            found.append(f"its {words} is {_shown(announced.get(key))}, and this run needs {_shown(wanted[key])}")
    theirs = announced.get("sections")
    theirs = theirs if isinstance(theirs, dict) else {}
    other = sorted(name for name, value in wanted["sections"].items() if theirs.get(name) != value)
    if other:
        found.append(f"its run file differs in {', '.join(other)}")
    return found


def examples(announced: Card) -> int | None:
    """Return the number of training rows that a client announces; None if it is not a valid number of rows."""
    value = announced.get("num_examples")
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 48 else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def run_key() -> str:
    """Return a key for a new run, which keeps clients' memories of different runs separate."""
    return hashlib.sha256(f"{time.time_ns()} {os.getpid()}".encode()).hexdigest()[:32]
