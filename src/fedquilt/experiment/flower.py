"""Runs on Flower: server and client apps. flwr is imported only when a run uses it.

Both sides build the experiment from the same run file. A client uses its own part; the server uses the method and the
rows of the global evaluation, and each client announces itself before training starts. If every client has its own data
source, the server reads none of them, and a client reads only its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from fedquilt.config.load import load, parse
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, FedquiltError, RunError
from fedquilt.core.factors import cut
from fedquilt.core.loop import needed
from fedquilt.core.method import Exchange
from fedquilt.core.shell import command, install_extra
from fedquilt.core.types import ClientId, Memory, Order
from fedquilt.core.wire import raised, travelling
from fedquilt.engine.flower.compat import quiet
from fedquilt.experiment.build import Experiment
from fedquilt.experiment.engine import Connect, Engine
from fedquilt.experiment.flower_site import cards, joined, scored_on_site
from fedquilt.experiment.progress import Progress, Silent
from fedquilt.experiment.run import resume, run
from fedquilt.record import Record, read_config, read_result
from fedquilt.record.read import is_run
from fedquilt.report.round_text import notices, round_text

log = logging.getLogger("flwr")  # Flower shows the lines of this logger to the user


def over(
    grid: Any,
    config: Config,
    *,
    name: str,
    poll: float,
    stop: Event | None = None,
    category: str = "train",
    clients: Collection[ClientId] | None = None,
) -> Connect:
    """The connection of a run to a Flower Grid; its engine is ready when all clients have announced themselves.

    Parameters
    ----------
    grid
        Flower's Grid.
    config
        The config; [network] has the time limits.
    name
        The name of the engine in the record: ``"flower"`` or ``"flower-sim"``.
    poll
        Longest pause in seconds between two checks for replies.
    stop
        Once set, ends all waiting.
    category
        Flower's category of the messages: ``"train"``, or ``"query"`` after a run, which needs no quorum.
    clients
        The clients that are waited for; None for all.
    """
    network = config.network
    # a query does with whoever answers, also where a round needs more clients
    quorum, least = (config.quorum, config.defence.min_cohort) if category == "train" else (0.0, 1)

    def make(experiment: Experiment, key: str, memories: Mapping[ClientId, Memory], progress: Progress) -> Engine:
        from fedquilt.engine.flower.grid import GridEngine
        from fedquilt.engine.flower.packing import Announced, announced

        ranks = {profile.id: profile.budget.rank for profile in experiment.federation.profiles}
        initial = {id: group.server.initial for group in experiment.groups for id in group.ids}

        def allowed(exchange: Exchange, client: ClientId, order: Order) -> Announced:
            tensors = travelling(cut(initial[client], ranks[client]), exchange.wire)
            if exchange.expects is not None:  # a reply may hold other tensors than the model's, such as texts
                wanted = exchange.expects(order if exchange.wire is None else raised(order, exchange.wire))
                tensors |= travelling(wanted, exchange.wire)
            return {**announced(tensors), **announced(order.params)}

        every = cards(experiment)
        wanted = {id: card for id, card in every.items() if clients is None or id in clients}
        engine = GridEngine(
            grid,
            wanted,
            key,
            timeout=network.timeout,
            grace=network.grace,
            enough=lambda orders: needed(orders, quorum, least),
            allowed=allowed,
            watch=progress.client,
            poll=poll,
            stop=stop,
            keys=dict(enumerate(network.node_keys)) if network.node_keys and name == "flower" else None,
            category=category,
        )
        engine.hello(network.wait)
        # where not all clients are asked, the nodes of others are rejected too, and rightly
        rejected = engine.rejected_nodes.values() if len(wanted) == len(every) else ()
        for words in (*engine.refused.values(), *rejected):
            log.warning("fedquilt: rejected: %s", words)
        for client in sorted(engine.cards.keys() - engine.nodes.keys() - engine.refused.keys()):
            log.warning("fedquilt: client %d did not join", client)
        return engine

    return Connect(name, make, here=(), adapted=scored_on_site)


def simulate(
    config: Config | None,
    folder: Path,
    progress: object = None,
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
    back_to: int | None = None,
) -> Path:
    """Run a config into a new folder on Flower's simulation engine, or resume the run in the folder.

    The clients' memories are in ``folder/sites``.

    Parameters
    ----------
    config : the run file; None to resume the run in ``folder``.
    folder : the run's folder.
    progress : receives reports.
    cpus : CPU cores of this machine for each simulated client.
    gpus : GPUs of this machine for each simulated client.
    back_to : resume from the state after this many rounds.

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
    elif back_to is None and read_result(folder) is not None:
        return folder
    settings = parse(read_config(folder)) if config is None else config
    memories = folder.absolute() / "sites"

    def main(grid: Any, stop: Event) -> None:
        connect = over(grid, settings, name="flower-sim", poll=0.1, stop=stop)
        if config is None:
            resume(folder, progress=progress, connect=connect, back_to=back_to)
        else:
            run(config, folder, progress, connect)

    server.simulate(main, client_app(joined(settings), memories), settings.partition.num_clients, cpus=cpus, gpus=gpus)
    if read_result(folder) is None:
        raise RunError(
            f"{folder}: Flower's simulation ended before the run did; go on with: "
            f"{command('run', '--engine', 'flower-sim', '--resume', folder)}"
        )
    return folder


def require(engine: str, *packages: str) -> None:
    """Raise ConfigError, with the command that installs it, if a package that an engine needs is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--engine {engine}: needs {' and '.join(missing)}; install it with: {install_extra('flower')}"
        )


FAILED = "fedquilt: the run failed: "
"""The prefix of the cause of a failure in the ServerApp's log."""


def server_app(file: Path) -> Any:
    """A Flower ServerApp that runs a run file, for apps that Flower's own commands start.

    The run's folder is ``folder`` of Flower's run config, or OUTPUT/NAME of the run file, on the machine of the
    SuperLink. If it holds a stopped run, that run is resumed. With ``query``, the run's parties predict the rows of
    that file, see ``flower_query``.
    """
    quiet()
    from fedquilt.engine.flower import server

    def main(grid: Any, context: Any) -> None:
        try:
            config = read(file)
            folder = Path(context.run_config.get("folder") or Path(config.output) / config.name).absolute()
            log.info("the run's folder is %s", folder)
            if context.run_config.get("query"):
                from fedquilt.experiment.flower_query import answer

                answer(grid, folder, context.run_config)
                return
            connect = over(grid, config, name="flower", poll=1.0)
            if is_run(folder):
                resume(folder, config, Logged(), connect)
            else:
                run(config, folder, Logged(), connect)
        except FedquiltError as error:  # Flower's own report would be a long traceback
            for problem in getattr(error, "problems", (str(error),)):
                log.error("%s%s", FAILED, problem)
            raise

    return server.server_app(main)


def read(file: Path) -> Config:
    """The config of a run file, or of a run's ``config.json``."""
    return parse(json.loads(file.read_text(encoding="utf-8"))) if file.suffix == ".json" else load(file)[0]


class Logged(Silent):
    """A Progress for a process without a terminal: one line of the log for each round and each dropped reply."""

    def started(self, name: str, first: int, rounds: int) -> None:
        self.rounds = rounds
        log.info("fedquilt: %s begins with round %d of %d", name, first + 1, rounds)

    def say(self, text: str) -> None:
        log.info("fedquilt: %s", text)

    def round(self, line: Mapping[str, Any]) -> None:
        number = line["round"] + 1
        for text in notices(line):
            log.warning("fedquilt: round %d of %d: %s", number, self.rounds, text)
        sent = ", ".join(f"{count} {kind}" for kind, count in line["messages"].items() if count)
        log.info("fedquilt: round %d of %d: %s; sent %s", number, self.rounds, round_text(line), sent)


def site_app(file: Path, mods: Sequence[Any] = ()) -> Any:
    """A Flower ClientApp for the partition in its node's config, with the same run file as the server.

    Private memory is kept in the folder ``memories`` of the node's config, ``~/.fedquilt/sites`` by default. ``joined``
    lists the other keys of the node's config.
    """

    def join(partition: ClientId, node: Mapping[str, Any]) -> Any:
        if "trainer" in node:
            from fedquilt.experiment.trainer_site import joined_script  # transformers' Trainer, and what that imports

            return joined_script(read(file), partition, node)
        return joined(read(file))(partition, node)

    return app_of(join, mods)


def app_of(join: Callable[[ClientId, Mapping[str, Any]], Any], mods: Sequence[Any] = ()) -> Any:
    """A Flower ClientApp of the sites that ``join`` gives, with memories where the node's config says."""
    quiet()
    from fedquilt.engine.flower.client import client_app

    def memories(context: Any) -> Path:
        # only from the node's own config: the server must not choose where a client writes
        return Path(context.node_config.get("memories") or Path.home() / ".fedquilt" / "sites")

    return client_app(join, memories, mods=mods)
