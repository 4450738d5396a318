"""The cryptography of private set intersection, all of it OpenMined's: ids become points of a curve times a secret key.

With H the library's hash to the curve P-256, a party's ``a H(id)`` tells nobody without ``a`` anything of the id, and
``b (a H(id)) = a (b H(id))``. Two lists that both parties have blinded can therefore be compared. These are the
library's two messages, the request and the response; its own last step finds positions in the client's list alone,
while an alignment needs those of both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedquilt.core.errors import ConfigError, WireError
from fedquilt.core.shell import install_extra

POINT_BYTES = 33
"""Bytes of a point of P-256 in compressed form."""


def library() -> Any:
    """Import and return OpenMined's module.

    Raises
    ------
    ConfigError
        if it is not installed.
    """
    try:
        import private_set_intersection.python as openmined
    except ImportError as error:
        raise ConfigError(
            "partition.alignment = 'psi': private set intersection is done by openmined-psi, which is not installed; "
            "set partition.alignment = 'keyed-hash', or install it at every party, here with: "
            f"{install_extra('psi')}"
        ) from error
    return openmined


def new_key() -> bytes:
    """A new secret key, from the operating system's entropy.

    Not from a run's random streams, whose seeds the other side knows: these bits cannot be reproduced, and only what
    the alignment finds can.
    """
    key: bytes = library().client.CreateWithNewKey(True).GetPrivateKeyBytes()
    return key


def blinded(key: bytes, ids: Sequence[str]) -> list[bytes]:
    """The blinded ids, in their order."""
    return list(library().client.CreateFromKey(key, True).CreateRequest(list(ids)).encrypted_elements)


def blinded_again(key: bytes, others: Sequence[bytes]) -> list[bytes]:
    """What another party has blinded, blinded with this key too, in its order.

    Raises
    ------
    WireError
        if one of them is no point of the curve.
    """
    openmined = library()
    request = openmined.Request(reveal_intersection=True, encrypted_elements=others)
    try:
        return list(openmined.server.CreateFromKey(key, True).ProcessRequest(request).encrypted_elements)
    except RuntimeError as error:
        raise WireError("a blinded id is no point of the curve") from error
