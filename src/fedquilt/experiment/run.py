"""One run: rounds, evaluation, record; and going on where a run stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from fedquilt.adapters.export import save_peft
from fedquilt.adapters.inject import adapters
from fedquilt.adapters.plain import plain
from fedquilt.client.fit import learning_rate_at
from fedquilt.config.load import NOT_DETERMINING, parse, resolved
from fedquilt.config.schema import Config
from fedquilt.core.errors import RoundError, RunError
from fedquilt.core.factors import SHIFT
from fedquilt.core.loop import Round, rounds
from fedquilt.core.method import Exchange
from fedquilt.core.params import num_bytes
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply, Tree
from fedquilt.engine.cohort import uniform_cohorts
from fedquilt.engine.flower.hello import run_key
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.protect import check_of, spending
from fedquilt.record import Record, environment, read_config, read_environment, read_partition, read_result


class Progress(Protocol):
    """What a run tells while it goes on; the command shows it."""

    def started(self, name: str, first: int, rounds: int) -> None:
        """The run ``name`` begins with round ``first`` of ``rounds``."""

    def client(self, exchange: str, number: int, of: int) -> None:
        """Client ``number`` of ``of`` has done its part of the exchange."""

    def step(self, number: int, of: int) -> None:
        """A client has made its optimiser step ``number`` of ``of``."""

    def round(self, line: Mapping[str, Any]) -> None:
        """A round is finished and recorded; ``line`` is its line of the record."""


class Silent:
    """A Progress that tells nothing."""

    def started(self, name: str, first: int, rounds: int) -> None: ...

    def client(self, exchange: str, number: int, of: int) -> None: ...

    def step(self, number: int, of: int) -> None: ...

    def round(self, line: Mapping[str, Any]) -> None: ...


class Engine(Protocol):
    """What carries a run: ``send`` of ``core.loop``, and the clients' memories as far as they are in this process.

    ``messages`` counts what was sent to clients over a network, by type of message; ``announced`` are the training rows
    that each client says it has, empty where the server knows them.
    """

    memories: dict[ClientId, Memory]
    messages: dict[str, int]
    announced: dict[ClientId, int]
    has_clients: bool

    def send(self, exchange: Exchange, orders: Mapping[ClientId, Order]) -> Iterator[Reply | Failure]: ...


class Connect(NamedTuple):
    """How a run gets its engine: ``make(experiment, key, memories, progress)``, where ``key`` is the run's own.

    ``here`` are the clients whose own rows are in this process, all for None.
    """

    name: str
    make: Callable[[Experiment, str, dict[ClientId, Memory], Progress], Engine]
    here: tuple[ClientId, ...] | None = None


def _embedded(experiment: Experiment, key: str, memories: dict[ClientId, Memory], progress: Progress) -> Engine:
    for client in experiment.clients.values():
        client.bench.stepped = progress.step
    return LocalEngine(experiment.clients, memories, progress.client)


EMBEDDED = Connect("embedded", _embedded)


def run(config: Config, folder: Path, progress: Progress | None = None, connect: Connect = EMBEDDED) -> Path:
    """Run a config into a new folder; gives the folder. Every client is in this process unless ``connect`` says other.

    Raises
    ------
    FedquiltError
        RunError if the folder exists and is not empty or cannot be written, RoundError if too few clients answered, and
        what ``build`` raises, before the folder is made.
    """
    Record.refuse(folder)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    experiment = build(config, connect.here)
    bench = experiment.server.bench
    around = environment(
        seed=config.seed,
        device=str(bench.device),
        precision=bench.precision,
        model=experiment.loaded.digest,
        architecture=experiment.loaded.architecture,
    )
    progress = progress or Silent()
    key = run_key()
    engine = connect.make(experiment, key, {}, progress)
    experiment = experiment.announced(engine.announced)
    around |= {"engine": connect.name, "run_key": key}
    record = Record.create(folder, resolved(config), around, experiment.partition)
    return _go_on(experiment, record, 0, None, engine, progress)


def resume(
    folder: Path, config: Config | None = None, progress: Progress | None = None, connect: Connect = EMBEDDED
) -> Path:
    """Go on with a run from its last whole checkpoint; ends in the same bits as if it had never stopped.

    ``config``, if given, must determine the same result as the run's own. A finished run is left as it is.
    """
    record = Record.open(folder, None if config is None else resolved(config), NOT_DETERMINING)
    if read_result(folder) is not None:
        return folder
    around = read_environment(folder)
    began_on = around.get("engine", EMBEDDED.name)
    if began_on != connect.name:  # the clients' memories are where the run began
        raise RunError(f"{folder}: began with --engine {began_on}; go on with the same one, not {connect.name}")
    torch.set_num_threads(around["threads"])  # the same sums in the same order
    experiment = build(parse(record.config), connect.here)
    progress = progress or Silent()
    start, state, memories = record.load_checkpoint() if record.has_checkpoint else (0, None, {})
    engine = connect.make(experiment, around.get("run_key", ""), memories, progress)
    experiment = experiment.announced(engine.announced)
    _same_inputs(folder, experiment)
    record.truncate_rounds(start)
    return _go_on(experiment, record, start, state, engine, progress, resumed=True)


def _same_inputs(folder: Path, experiment: Experiment) -> None:
    """Nothing, if data and model are those that the run began with."""
    advice = "bring back what the run began with, or start a new run in another folder"
    if experiment.partition["digest"] != read_partition(folder)["digest"]:
        source = experiment.config.data.source
        raise RunError(f"{folder}: data.source = '{source}' is not dealt as when the run began; {advice}")
    if experiment.loaded.digest != read_environment(folder)["model"]:
        name = experiment.config.model.name
        raise RunError(f"{folder}: model.name = '{name}' has not the weights that the run began with; {advice}")


def _go_on(
    experiment: Experiment,
    record: Record,
    start: int,
    state: Tree,
    engine: Engine,
    progress: Progress,
    resumed: bool = False,
) -> Path:
    config, began = experiment.config, time.perf_counter()
    cohorts = uniform_cohorts(experiment.federation.profiles, config.cohort, experiment.rng)
    progress.started(record.folder.name, start, config.rounds)
    finished = rounds(
        experiment.method,
        cohorts,
        engine.send,
        experiment.rng,
        num_rounds=config.rounds,
        state=state,
        start=start,
        quorum=config.quorum,
        min_replies=config.defence.min_cohort,
        check=check_of(config, experiment.federation.profiles),
    )
    spent = spending(config, cohorts, len(experiment.method.exchanges))
    sent: dict[str, int] = {}
    try:
        for done in finished:
            state = done.state
            line = {**_line(experiment, done, engine, sent), "privacy": spent(done.number)}
            if resumed and done.number == start:
                line["resumed"] = True  # a reader wants to know that the run was not all of a piece
            sent = dict(engine.messages)
            record.append_round(line)
            record.save_checkpoint(done.number + 1, state, engine.memories, config.seed)
            progress.round(line)
    except RoundError as error:
        raise RoundError(f"{error}; {_advice(record, config)}") from error
    try:
        save_adapters(experiment, state, engine.memories, record.folder / "adapters")
    except RunError as error:
        again = f"fedquilt run --resume {record.folder}"
        raise RunError(f"{error}; all rounds are in the checkpoint, so only this is left to do: {again}") from error
    record.save_result({"status": "finished", "rounds": config.rounds, "seconds": time.perf_counter() - began})
    return record.folder


def _advice(record: Record, config: Config) -> str:
    """What is left of a run whose round failed, and what may help."""
    manifest = record.folder / "checkpoint.json"
    kept = f"{manifest} holds the rounds before" if record.has_checkpoint else "no round before it was finished"
    rate = f"where losses are not finite, lower training.learning_rate ({config.training.learning_rate:g})"
    return f"{kept}; {rate} or set training.clip_norm, in a new run"


def evaluate(
    experiment: Experiment, state: Tree, memories: Mapping[ClientId, Memory], *, clients: bool = True
) -> dict[str, Any]:
    """Accuracy and loss of the global model on the global test rows, and of each client's on its own held-out rows.

    ``clients`` are the scores on test rows by client, ``validation`` those on validation rows (if any are kept).
    ``global`` is None where the method holds no whole model on the server (its head or adapters stay with the clients).
    The clients are evaluated where the config wants it, unless ``clients`` is False.
    """
    server, view = experiment.server, experiment.method.view
    order = view(state, server.profile)
    # no test rows give no scores
    whole = (server.evaluate(order) or None) if _is_whole(experiment, order) else None
    scores: dict[str, Any] = {"global": whole, "clients": {}}
    if not clients or experiment.config.evaluation.clients is not True:
        return scores
    for key, split in (("clients", "test"), ("validation", "validation")):
        for id, client in experiment.clients.items():
            if own := client.evaluate(view(state, client.profile), memories.get(id), split):
                scores.setdefault(key, {})[str(id)] = own
    return scores


def _line(experiment: Experiment, done: Round, engine: Engine, sent: Mapping[str, int]) -> dict[str, Any]:
    config, number = experiment.config, done.number
    due = (number + 1) % config.evaluation.every == 0 or number >= config.rounds - config.evaluation.last
    began = time.perf_counter()
    scores = evaluate(experiment, done.state, engine.memories, clients=engine.has_clients) if due else None
    return {
        "round": number,
        "seconds": done.seconds,
        "evaluation_seconds": time.perf_counter() - began,
        "learning_rate": learning_rate_at(experiment.server.training, number, config.rounds),
        "num_layers": experiment.layout.num_layers,
        "exchanges": [
            {
                "exchange": moved.exchange,
                "clients": {
                    str(client): {
                        "bytes_down": moved.bytes_down[client],
                        "bytes_up": moved.bytes_up[client],
                        "settings": moved.settings[client],
                        "metrics": moved.metrics[client],
                    }
                    for client in sorted(moved.bytes_up)
                },
                "dropped": {str(client): reason for client, reason in sorted(moved.dropped.items())},
                "dropped_bytes_down": sum(moved.bytes_down[client] for client in moved.dropped),
            }
            for moved in done.traffic
        ],
        "messages": {kind: count - sent.get(kind, 0) for kind, count in engine.messages.items()},
        "evaluation": scores,
        "state": {key: value for key, value in done.state.items() if _is_small(value)},
    }


def _is_small(value: Any) -> bool:
    """Whether a part of the state is a number or a short list of numbers, which a reader of the record may want."""
    if isinstance(value, list):
        return len(value) <= 256 and all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float)


def save_adapters(experiment: Experiment, state: Tree, memories: Mapping[ClientId, Memory], folder: Path) -> None:
    """The adapters in PEFT's folder format: ``global``, and ``client-007`` for each client with a part of its own or a
    rank of its own."""
    views = {}
    order = experiment.method.view(state, experiment.server.profile)
    if _is_whole(experiment, order):
        views["global"] = experiment.server.params(order)
    for id, client in experiment.clients.items():
        own = experiment.method.view(state, client.profile)
        if memories.get(id, {}).get("params") or num_bytes(own.params) != num_bytes(order.params):
            views[_client_folder(id)] = client.params(own, memories.get(id))
    for name, params in views.items():
        _save(experiment, folder / name, params)


def _is_whole(experiment: Experiment, order: Order) -> bool:
    """Whether a view holds every tensor of the layout; it may hold what was merged into the base besides."""
    named = {name for name in order.params if name.rpartition(".")[2] != SHIFT}
    return named == experiment.layout.depth.keys()


def _save(experiment: Experiment, folder: Path, params: Mapping[str, torch.Tensor]) -> None:
    loaded, config = experiment.loaded, experiment.config
    params, lora = plain(params, experiment.lora)
    # a frozen head is not in the layout; one that was drawn afresh must go along or the adapter means something else
    frozen = [name for name in loaded.head if name not in params] if loaded.fresh_head else []
    own = dict(loaded.model.named_parameters())
    save_peft(
        folder,
        {**params, **{name: own[name].detach() for name in frozen}},
        experiment.layout,
        lora,
        base_name=config.model.name,
        task=config.model.task,
        head=loaded.head,
        fan_in_fan_out=any(adapter.fan_in_fan_out for adapter in adapters(loaded.model).values()),
    )


def export(run: Path, out: Path, client: ClientId | None = None) -> Path:
    """Write the adapter of a run's last checkpoint as a PEFT folder: the global one, or a client's.

    A finished run's adapters are copied, which needs neither model nor data; those of an unfinished one are made.

    Raises
    ------
    RunError
        if the run has no checkpoint, or no global model because its parts stay with the clients, or no such client, or
        ``out`` holds something that is no adapter, which would be lost.
    """
    record = Record.open(run)
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out}: is a file; give a new folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "adapter_config.json").exists():
        raise RunError(f"--out {out}: this folder is not empty and holds no adapter; give a new folder")
    if not record.has_checkpoint:
        raise RunError(f"{run} has no finished round to export; let it finish one with `fedquilt run --resume {run}`")
    num_clients = len(read_partition(run)["clients"])
    if client is not None and not 0 <= client < num_clients:
        raise RunError(f"--client {client}: {run} has the clients 0 to {num_clients - 1}")
    if read_result(run) is None:
        experiment = build(parse(read_config(run)))
        _, state, memories = record.load_checkpoint()
        save_adapters(experiment, state, memories, run / "adapters")
    own = None if client is None else run / "adapters" / _client_folder(client)
    # a client without a part of its own uses the global model
    made = own if own is not None and own.exists() else run / "adapters" / "global"
    if not made.exists():
        raise RunError(
            f"{run} has no global model: tensors of it stay with the clients; export one client's with --client NUMBER"
            if client is None
            else f"{run}: client {client} has not trained, and there is no global model; choose another --client"
        )
    shutil.copytree(made, out, dirs_exist_ok=True)
    return out


def _client_folder(client: ClientId) -> str:
    return f"client-{client:03d}"
