"""Configuration files of a local federation: keys, certificates, the connection, node configs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedquilt.core.errors import FedquiltError

CONNECTION = "trial"
"""The connection's name, as in ``flwr run APP trial``."""


def config_value(value: Any) -> str:
    """Format a value for a node's config; strings are quoted.

    Raises
    ------
    FedquiltError
        if a string contains a quote or a line break.
    """
    if isinstance(value, str):
        if "'" in value or "\n" in value:
            raise FedquiltError(f"node config {value!r}: a node config cannot hold a quote or a line break")
        return f"'{value}'"
    return str(value).lower() if isinstance(value, bool) else str(value)


def prepare(folder: Path, home: Path, certs: Path, keys: Sequence[Path], address: str) -> None:
    """Write the missing certificates and keys, and the connection to the SuperLink.

    Parameters
    ----------
    folder
        The folder of the local federation.
    home
        FLWR_HOME of the SuperLink.
    certs
        The folder of the certificates.
    keys
        The paths of the nodes' private keys; if empty, the connection is without TLS.
    address
        Host and port of the SuperLink.
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
