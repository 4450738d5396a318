"""A run on Flower: what the server and the clients are made of. flwr is imported when a run asks for it.

Both sides build the experiment from the same run file. A client takes its own part of it; the server takes the method
and the rows of the global evaluation, and hears of each client what it is before training starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

import torch

from fedquilt.config.load import load, parse, resolved
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.method import Exchange
from fedquilt.core.types import ClientId, Memory, Order
from fedquilt.engine.flower.compat import quiet
from fedquilt.engine.flower.hello import card
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.run import Connect, Engine, Progress, resume, run
from fedquilt.record import Record, read_config, read_result
from fedquilt.record.read import is_run

_FOLLOWED = ("seed", "rounds", "adapter", "head", "training", "privacy", "method")
"""Parts of a run file that a client's work follows, so both sides must have the same."""


def joined(config: Config) -> Any:
    """``join(partition)``: the site of a partition, as ``client_app`` wants it.

    The experiment is built at the first call and kept for as long as the process lives.
    """
    keys = resolved(config)
    # nobody else can score a client's own rows; under privacy nobody does
    if config.evaluation.clients is True and config.privacy.mode == "none":
        keys["evaluation"]["clients"] = "received"
    key = json.dumps(keys, sort_keys=True)

    def join(partition: ClientId) -> Any:
        from fedquilt.engine.flower.client import Site

        experiment = _built(key)
        client = experiment.clients.get(partition)
        if client is None:
            raise ConfigError(
                f"partition-id = {partition}: partition.num_clients = {len(experiment.clients)}, so the partitions are "
                f"0 to {len(experiment.clients) - 1}"
            )
        return Site(partition, client, experiment.method, cards(experiment)[partition])

    return join


@lru_cache(maxsize=1)
def _built(key: str) -> Experiment:
    config = parse(json.loads(key))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return build(config)


def cards(experiment: Experiment) -> dict[ClientId, dict[str, Any]]:
    """What each client of an experiment announces."""
    keys = resolved(experiment.config)
    return {
        id: card(
            client.profile,
            tuple(exchange.name for exchange in experiment.method.exchanges),
            layout=experiment.layout,
            base=experiment.loaded.digest,
            sections={name: keys[name] for name in _FOLLOWED},
        )
        for id, client in experiment.clients.items()
    }


def over(grid: Any, *, name: str, timeout: float, wait: float, poll: float, stop: Event | None = None) -> Connect:
    """The engine of a run over a Flower Grid; it is made when all clients have said who they are.

    ``timeout`` is how many seconds a reply may take, ``wait`` how many the clients may take to join, ``poll`` the
    seconds between two looks for replies.
    """

    def make(experiment: Experiment, key: str, memories: Mapping[ClientId, Memory], progress: Progress) -> Engine:
        from fedquilt.engine.flower.grid import GridEngine
        from fedquilt.engine.flower.packing import Announced, announced

        def allowed(exchange: Exchange, client: ClientId, order: Order) -> Announced:
            return {**announced(experiment.clients[client].initial), **announced(order.params)}

        engine = GridEngine(
            grid,
            cards(experiment),
            key,
            timeout=timeout,
            allowed=allowed,
            watch=progress.client,
            poll=poll,
            stop=stop,
        )
        engine.hello(wait)
        return engine

    return Connect(name, make)


def simulate(
    config: Config | None,
    folder: Path,
    progress: Progress | None = None,
    *,
    timeout: float = 3600.0,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> Path:
    """Run a config into a new folder on Flower's simulation engine; without a config, go on with the run in ``folder``.

    The clients' memories lie in ``folder/sites``. Each simulated client gets ``cpus`` and ``gpus`` of this machine.

    Raises
    ------
    FedquiltError
        as ``experiment.run`` and ``experiment.resume`` do; ConfigError if Flower is not installed.
    """
    require("flower-sim", "flwr", "ray")
    quiet()
    from fedquilt.engine.flower import server
    from fedquilt.engine.flower.client import client_app

    if config is not None:
        Record.refuse(folder)
    elif read_result(folder) is not None:
        return folder
    settings = parse(read_config(folder)) if config is None else config
    memories = folder.absolute() / "sites"

    def main(grid: Any, stop: Event) -> None:
        connect = over(grid, name="flower-sim", timeout=timeout, wait=300.0, poll=0.1, stop=stop)
        if config is None:
            resume(folder, progress=progress, connect=connect)
        else:
            run(config, folder, progress, connect)

    server.simulate(main, client_app(joined(settings), memories), settings.partition.num_clients, cpus=cpus, gpus=gpus)
    if read_result(folder) is None:
        raise RunError(f"{folder}: Flower's simulation ended before the run did; go on with --resume")
    return folder


def require(engine: str, *packages: str) -> None:
    """Nothing, if the packages that an engine needs are installed.

    Raises
    ------
    ConfigError
        if one is not; says how to get it.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--engine {engine}: needs {' and '.join(missing)}; install it with `pip install 'fedquilt[flower]'`"
        )


def server_app(file: Path) -> Any:
    """A Flower ServerApp that runs a run file; for the apps that Flower's own commands start.

    The run's folder is OUTPUT/NAME of the run file; if a run is there that stopped, it goes on. Flower's run config may
    hold ``timeout`` (seconds that a reply may take) and ``wait`` (seconds that the clients may take to join).
    """
    quiet()
    from fedquilt.engine.flower import server

    def main(grid: Any, context: Any) -> None:
        config = load(file)[0]
        folder = Path(config.output) / config.name
        timeout = float(context.run_config.get("timeout", 3600))
        wait = float(context.run_config.get("wait", 300))
        connect = over(grid, name="flower", timeout=timeout, wait=wait, poll=1.0)
        if is_run(folder):
            resume(folder, config, connect=connect)
        else:
            run(config, folder, connect=connect)

    return server.server_app(main)


def site_app(file: Path, mods: Sequence[Any] = ()) -> Any:
    """A Flower ClientApp that works for the partition its node was started with, by the same run file.

    Private memory is kept in the folder that the node's config names as ``memories``; ``~/.fedquilt/sites`` otherwise.
    """
    quiet()
    from fedquilt.engine.flower.client import client_app

    def memories(context: Any) -> Path:
        # only the node's own config: where a client writes is not for the server to say
        return Path(context.node_config.get("memories") or Path.home() / ".fedquilt" / "sites")

    def join(partition: ClientId) -> Any:
        return joined(load(file)[0])(partition)

    return client_app(join, memories, mods=mods)
