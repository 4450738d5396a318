"""What the processes of a federation on loopback read: keys, certificates, the connection, a node's config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedquilt.core.errors import FedquiltError

CONNECTION = "trial"
"""The name that ``flwr run APP trial`` knows the federation by."""


def config_value(value: Any) -> str:
    """A value as Flower's config wants it; text in quotes, which it must not hold itself."""
    if isinstance(value, str):
        if "'" in value or "\n" in value:
            raise FedquiltError(f"node config {value!r}: Flower has no way to write a quote or a line break in it")
        return f"'{value}'"
    return str(value).lower() if isinstance(value, bool) else str(value)


def prepare(folder: Path, home: Path, certs: Path, keys: Sequence[Path], address: str) -> None:
    """Write what the processes read: certificates and keys that are not there yet, and the connection to the SuperLink.

    ``home`` is FLWR_HOME of the SuperLink, ``keys`` the nodes' private keys in ``certs``; without any the connection is
    without TLS.
    """
    home.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")  # it holds private keys
    safety = "insecure = true"
    if keys:
        from fedquilt.engine.flower.certs import authority, node_key, server_certificate

        if not (certs / "ca.crt").exists():
            authority(certs, "fedquilt trial")
            server_certificate(certs, ())
        for key in keys:
            if not key.exists():
                node_key(certs, key.name)
        safety = f"root-certificates = {json.dumps(str(certs / 'ca.crt'))}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{address}"\n{safety}\n',
        encoding="utf-8",
    )
