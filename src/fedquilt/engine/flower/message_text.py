"""Texts about messages: why an answer is missing, untrusted text made printable, who did not join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Message

from fedquilt.core.types import ClientId

ABSENT = "no reply"
_GONE = (3, 4, 5)  # Flower's codes for an expired message, an expired reply, and a node that is offline


def answer_of(message: Message) -> Message | str:
    """Return a message with content unchanged, and the reason of an error message."""
    if not message.has_error():
        return message
    text = harmless(message.error.reason or f"Flower's error {message.error.code}")
    return f"{ABSENT}: {text}" if message.error.code in _GONE else text


def harmless(words: Any) -> str:
    """Return untrusted text as one short printable line, without line breaks and terminal control sequences."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(words)[:2000].split()))[:500]


def partitions_text(cards: Sequence[ClientId] | Mapping[ClientId, Any]) -> str:
    """Return a phrase that lists the partitions of a run."""
    ids = sorted(cards)
    return f"the partitions {ids[0]} to {ids[-1]}" if ids else "no partitions"


def absent_text(missing: Sequence[ClientId], num_clients: int, seconds: float) -> str:
    """Return which clients did not join in time, and how to start them."""
    return (
        f"{len(missing)} of {num_clients} clients did not join within {seconds:g} s (partitions "
        f"{', '.join(map(str, missing[:10]))}{' and more' if len(missing) > 10 else ''}); start their "
        "SuperNodes with --node-config 'partition-id=...', or wait longer"
    )
