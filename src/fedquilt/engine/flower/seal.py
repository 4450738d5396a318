"""Signed announcements: a partition is tied to a public key, and its node signs its card with the private key.

A ServerApp learns only the ids of its nodes from Flower, not the keys that they authenticated with, so nodes prove
possession of the key once more.
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
from fedquilt.core.shell import command

_PURPOSE = "fedquilt card 1"  # so that the signature cannot be used for anything else that the key signs
_SIGNED = ec.ECDSA(hashes.SHA384())


def signature(key: Path, card: Any, nonce: str, run: str, node: int) -> str:
    """Sign the card that a node announces to this run in answer to ``nonce``; returns the signature as base64.

    Parameters
    ----------
    key
        The file of the private key.
    card
        The card.
    nonce, run, node
        The server's nonce, the key of the run and the node's id, which the signature covers too.

    Raises
    ------
    ConfigError
        if the file holds no EC private key without a password.
    """
    try:
        private = serialization.load_ssh_private_key(key.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"key = '{key}' of the node's config: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"key = '{key}' of the node's config: no private key without a password ({error})") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"key = '{key}' of the node's config: not an EC key; make one with: {command('site', 'certs', '--node')}"
        )
    return base64.b64encode(private.sign(_statement(card, nonce, run, node), _SIGNED)).decode()


def is_signed(public: str, given: Any, card: Any, nonce: str, run: str, node: int) -> bool:
    """Whether ``given`` is a valid signature of this card.

    Parameters
    ----------
    public
        The public key: a line as in NAME.pub.
    given
        The untrusted signature.
    card
        The announced card.
    nonce, run, node
        What the signature must cover too; see ``signature``.
    """
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
    return json.dumps([_PURPOSE, run, nonce, node, card], sort_keys=True).encode()
