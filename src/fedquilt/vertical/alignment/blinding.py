"""How a party hides its ids from the others: by private set intersection, or by a hash under a shared key."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fedquilt.core.errors import ConfigError
from fedquilt.data.ids import MIN_KEY_BYTES
from fedquilt.vertical.alignment import psi


class Blinding(NamedTuple):
    """One way to hide ids.

    Attributes
    ----------
    name
        Its name in run files.
    width
        Bytes of a blinded id.
    key
        ``key(shared)`` gives the key that a party blinds with, from the key that its site shares with others.
    blind
        ``blind(key, ids)`` gives the blinded ids in order, all unlike.
    again
        ``again(key, others)`` blinds what another party has blinded; the result does not depend on who was first.
        None if blinded ids of several parties can be compared as they are.
    """

    name: str
    width: int
    key: Callable[[bytes], bytes]
    blind: Callable[[bytes, Sequence[str]], list[bytes]]
    again: Callable[[bytes, Sequence[bytes]], list[bytes]] | None = None


def shared_key(key: bytes) -> bytes:
    """The key itself.

    Raises
    ------
    ConfigError
        if it is too short, as it is where the site names none.
    """
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(
            "partition.alignment = 'keyed-hash' needs partition.key_file, a file with a key of at least "
            f"{MIN_KEY_BYTES} bytes that is the same at every party"
        )
    return key


def keyed_hashes(key: bytes, ids: Sequence[str]) -> list[bytes]:
    """HMAC-SHA256 of each id: whoever has the key can test whether a guessed id is among them."""
    return [hmac.digest(key, one.encode(), "sha256") for one in ids]


BLINDINGS = {
    own.name: own
    for own in (
        Blinding("psi", psi.POINT_BYTES, lambda _: psi.new_key(), psi.blinded, psi.blinded_again),
        Blinding("keyed-hash", 32, shared_key, keyed_hashes),
    )
}
