"""Whether messages hold anyone's ids: as text, in other encodings, or as what everybody can compute from them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from flwr.app import Message

ANCHOR = 8
"""Bytes of the beginning of a trace by which places are found where it may stand; no trace is shorter."""

HASHES = ("md5", "sha1", "sha256", "sha512", "blake2b", "blake2s", "sha3_256")


def traces(one: str) -> Iterator[bytes]:
    """What would give this id away to whoever guesses it: its text, its hashes, its point of the curve."""
    text = one.encode()
    yield text
    yield one.encode("utf-16-le")
    yield text.hex().encode()
    yield base64.b64encode(text).rstrip(b"=")
    for name in HASHES:
        digest = hashlib.new(name, text).digest()
        yield digest
        yield digest.hex().encode()
        yield base64.b64encode(digest).rstrip(b"=")


def unblinded(ids: list[str]) -> list[bytes]:
    """The x-coordinates of the points that OpenMined's library hashes ids to: blinded with the key 1."""
    import private_set_intersection.python as openmined

    points = openmined.client.CreateFromKey(b"\x01", True).CreateRequest(ids).encrypted_elements
    return [point[1:] for point in points]


def content_of(message: Message) -> bytes:
    """All bytes of a message's content: its text and its tensors."""
    if not message.has_content():
        return message.error.reason.encode()
    index = str(message.content["index"]["json"]).encode()
    return index + b"\n" + message.content["tensors"]["bytes"].data


def leaks(messages: Iterable[bytes], ids: Iterable[str], points: bool = True) -> list[bytes]:
    """The traces of these ids that stand in the messages."""
    ids = list(ids)
    wanted = {trace for one in ids for trace in traces(one)} | set(unblinded(ids) if points else ())
    assert min(map(len, wanted)) >= ANCHOR, "an id of fewer bytes could be in a message by chance"
    lengths = sorted({len(trace) for trace in wanted})
    anchors = np.unique(np.array([int.from_bytes(trace[:ANCHOR], "little") for trace in wanted], dtype=np.uint64))
    found = []
    for message in messages:
        for place in _places(message, anchors):
            found += [cut for size in lengths if (cut := message[place : place + size]) in wanted and len(cut) == size]
    return found


def _places(message: bytes, anchors: np.ndarray) -> Iterator[int]:
    """Where the message has eight bytes that a trace begins with."""
    for shift in range(ANCHOR):
        usable = (len(message) - shift) // ANCHOR * ANCHOR
        if usable > 0:
            words = np.frombuffer(message, dtype="<u8", count=usable // ANCHOR, offset=shift)
            nearest = anchors[np.minimum(np.searchsorted(anchors, words), len(anchors) - 1)]
            yield from (np.flatnonzero(nearest == words) * ANCHOR + shift).tolist()
