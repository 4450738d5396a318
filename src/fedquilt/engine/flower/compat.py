"""What fedquilt touches of Flower beyond its public interface, in one place; written for flwr 1.41.

Also Flower's and Ray's reports to their makers, which are off unless the user has turned them on.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Environment variables that keep Flower and Ray from calling home; one that is already set stays as it is."""

ACCEPTED = re.compile(r"SuperNode ID: (-?\d+)")
"""What a SuperNode's log says when the SuperLink has accepted it."""
REFUSED = "[code: 2004]"
"""What the log of a SuperNode says whose key is not registered, or whose old self still counts as there."""
TAKEN = "already in use"
"""What ``flwr supernode register`` says of a key that is registered."""
LEASE_SECONDS = 60.0
"""How long a SuperNode counts as there after its last sign of life: two heartbeats of 30 s, fixed in Flower's code."""


def quiet() -> None:
    """Turn off Flower's and Ray's usage reports and update checks in this process and those it starts."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def identify(run_id: int, node_id: int = 1, task_id: int = 1) -> None:
    """Tell Flower which run this process is part of; without it no Message can be made outside its own engines."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id


def simulate(server_app: Any, client_app: Any, num_nodes: int, *, cpus: float, gpus: float) -> None:
    """Run two apps on Flower's simulation engine (Ray); returns when the ServerApp has ended."""
    from flwr.simulation import run_simulation

    # a simulated client sees the devices that the run file chooses from, as the server does
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # its deprecation notice is for those who write apps; `flwr run` would start a daemon that outlives the run
    logging.getLogger("flwr").setLevel(logging.ERROR)
    resources: Any = {"client_resources": {"num_cpus": cpus, "num_gpus": gpus}}
    run_simulation(server_app, client_app, num_nodes, backend_config=resources)
