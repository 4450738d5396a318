"""All uses of Flower beyond its public API, in one place; written for flwr 1.41.

Also turns off the telemetry of Flower and Ray unless the user has turned it on.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Environment variables that turn off telemetry and update checks; a variable that is already set is kept."""

ACCEPTED = re.compile(r"SuperNode ID: (-?\d+)")
"""In the log of a SuperNode that the SuperLink has accepted."""
REFUSED = "[code: 2004]"
"""In the log of a SuperNode whose key is not registered, or is still counted as online from its previous process."""
TAKEN = "already in use"
"""In the output of ``flwr supernode register`` for a key that is registered already."""
LEASE_SECONDS = 60.0
"""How long a SuperNode counts as online after its last heartbeat: two intervals of 30 s, fixed in Flower's code."""


def quiet() -> None:
    """Turn off the telemetry and update checks of Flower and Ray in this process and its children."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def identify(run_id: int, node_id: int = 1, task_id: int = 1) -> None:
    """Set Flower's identity of this process, without which no Message can be made outside its own engines."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id


def simulate(server_app: Any, client_app: Any, num_nodes: int, *, cpus: float, gpus: float) -> None:
    """Run two apps on Flower's simulation engine (Ray); returns when the ServerApp has ended.

    Parameters
    ----------
    server_app, client_app
        Flower's ServerApp, and the ClientApp of every node.
    num_nodes
        The number of simulated nodes.
    cpus, gpus
        CPU cores and GPUs of this machine for each simulated client; may be fractions.
    """
    from flwr.simulation import run_simulation

    # simulated clients see the same devices as the server, and the run file chooses among them
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # hides a deprecation notice for authors of apps; its replacement `flwr run` starts a daemon that outlives the run
    logging.getLogger("flwr").setLevel(logging.ERROR)
    resources: Any = {"client_resources": {"num_cpus": cpus, "num_gpus": gpus}}
    run_simulation(server_app, client_app, num_nodes, backend_config=resources)
