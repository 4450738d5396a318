"""What an answer over Flower says: its content, or in words why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Message

from fedquilt.core.types import ClientId

ABSENT = "no reply"
_GONE = (3, 4, 5)  # Flower's codes for a message or a reply that is gone, and for a node that is


def answer_of(message: Message) -> Message | str:
    """A message with content as it is; one that tells of an error as its reason."""
    if not message.has_error():
        return message
    text = harmless(message.error.reason or f"Flower's error {message.error.code}")
    return f"{ABSENT}: {text}" if message.error.code in _GONE else text


def harmless(words: Any) -> str:
    """Untrusted text as one short line: no line breaks, nothing that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(words)[:2000].split()))[:500]


def partitions_text(cards: Sequence[ClientId] | Mapping[ClientId, Any]) -> str:
    """Which partitions a run has."""
    ids = sorted(cards)
    return f"the partitions {ids[0]} to {ids[-1]}" if ids else "no partitions"


def absent_text(missing: Sequence[ClientId], num_clients: int, seconds: float) -> str:
    """Who did not join a run in time, and how to start them."""
    return (
        f"{len(missing)} of {num_clients} clients did not join within {seconds:g} s (partitions "
        f"{', '.join(map(str, missing[:10]))}{' and more' if len(missing) > 10 else ''}); start their "
        "SuperNodes with --node-config 'partition-id=...', or wait longer"
    )
