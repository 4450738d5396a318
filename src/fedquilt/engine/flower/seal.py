"""Whose node it is: a partition is tied to a public key, and what a node announces is signed with the other half of it.

Flower tells a server no more than the numbers of its nodes, so the key that a SuperNode is known by is shown once more.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedquilt.core.errors import ConfigError

_WHAT = "fedquilt card 1"  # a signature of this is none of anything else that the key signs
_SIGNED = ec.ECDSA(hashes.SHA384())


def signature(key: Path, card: Any, nonce: str, run: str, node: int) -> str:
    """The signature of what a node announces to this run in answer to ``nonce``, as base64.

    Raises
    ------
    ConfigError
        if there is no EC private key in the file.
    """
    try:
        private = serialization.load_ssh_private_key(key.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"key = '{key}' of the node's config: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"key = '{key}' of the node's config: no private key without a password ({error})") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"key = '{key}' of the node's config: not an EC key, as `fedquilt site certs --node` makes")
    return base64.b64encode(private.sign(_statement(card, nonce, run, node), _SIGNED)).decode()


def is_signed(public: str, given: Any, card: Any, nonce: str, run: str, node: int) -> bool:
    """Whether ``given`` is the signature of this by the owner of a public key (a line as in NAME.pub)."""
    if not isinstance(given, str) or len(given) > 1000:
        return False
    try:
        key = serialization.load_ssh_public_key(public.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(base64.b64decode(given, validate=True), _statement(card, nonce, run, node), _SIGNED)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, binascii.Error):
        return False
    return True


def _statement(card: Any, nonce: str, run: str, node: int) -> bytes:
    return json.dumps([_WHAT, run, nonce, node, card], sort_keys=True).encode()
