"""Flower's simulation: its FedAvg, its engine on Ray, which is the only one that Flower 1.41 has.

Ray gets as many processors as there are and each client one, so that as many workers train at the same time. (The
default, two processors a client, leaves one worker on two processors.) Ray lowers the priority of its workers by 15,
so that on a machine that others use they hardly run; here they keep the usual one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
os.environ.setdefault("RAY_worker_niceness", "0")

from flower_client import app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from task import Report, task_of_arguments

server = ServerApp()


class Noting(FedAvg):
    """FedAvg that notes the end of each round."""

    report: Report

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[Any, Any]:
        replies = list(replies)
        made = super().aggregate_train(server_round, replies)
        told = [reply.content["metrics"] for reply in replies]
        self.report.round({int(one["partition"]): float(one["loss"]) for one in told})
        return made


@server.main()
def main(grid: Grid, context: Context) -> None:
    task = task_of_arguments()
    strategy = Noting(fraction_evaluate=0.0, min_train_nodes=len(task.clients), min_available_nodes=len(task.clients))
    strategy.report = Report(task, "flower_ray")
    config = ConfigRecord({"folder": str(task.folder)})
    result = strategy.start(grid, ArrayRecord(task.start()), num_rounds=task.rounds, train_config=config)
    strategy.report.write(result.arrays.to_torch_state_dict())


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0))
    backend = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": cores}}
    run_simulation(server, app, len(task_of_arguments().clients), backend_config=backend)
