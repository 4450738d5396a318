"""One run: rounds, evaluation, record; and going on where a run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from fedquilt.client.fit import learning_rate_at
from fedquilt.config.load import NOT_DETERMINING, parse, resolved
from fedquilt.config.schema import Config
from fedquilt.core.errors import RoundError, RunError
from fedquilt.core.loop import Round, rounds
from fedquilt.core.method import Exchange
from fedquilt.core.types import ClientId, Failure, Memory, Order, Reply, Tree
from fedquilt.engine.cohort import uniform_cohorts
from fedquilt.engine.flower.hello import run_key
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment.build import Experiment, build
from fedquilt.experiment.groups import BuiltGroup, outputs_record, weights_digest
from fedquilt.experiment.protect import check_of, spending
from fedquilt.experiment.saving import is_whole, save_adapters
from fedquilt.methods import ACROSS
from fedquilt.methods.by_architecture import APART
from fedquilt.record import Record, environment, read_environment, read_partition, read_result


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
    bench = experiment.groups[0].bench  # device and precision are one for all groups
    around = environment(
        seed=config.seed,
        device=str(bench.device),
        precision=bench.precision,
        model=weights_digest(experiment.groups),
        architecture=", ".join(dict.fromkeys(group.architecture for group in experiment.groups)),
    )
    if len(experiment.federation.layouts) > 1 and config.method.name not in ACROSS:
        around["apart"] = [*experiment.federation.layouts]  # the method ran in each of them, and nothing between
    progress = progress or Silent()
    key = run_key()
    engine = connect.make(experiment, key, {}, progress)
    experiment = experiment.announced(engine.announced)
    around |= {"engine": connect.name, "run_key": key, "outputs": outputs_record(experiment.groups)}
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
        source = "', '".join(dict.fromkeys(group.config.data.source for group in experiment.groups))
        raise RunError(f"{folder}: data.source = '{source}' is not dealt as when the run began; {advice}")
    if weights_digest(experiment.groups) != read_environment(folder)["model"]:
        names = "', '".join(dict.fromkeys(group.config.model.name for group in experiment.groups))
        raise RunError(f"{folder}: model.name = '{names}' has not the weights that the run began with; {advice}")
    outputs, began = outputs_record(experiment.groups), read_environment(folder).get("outputs")
    if began is not None and began != outputs:
        raise RunError(
            f"{folder}: the classes of the model's outputs are {outputs} and were {began} when the run began: the "
            f"base's id2label is another, or the data's names; {advice}"
        )


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
    In a federation of groups it is always None, and ``groups`` are the scores of each group's global model, by label.
    The clients are evaluated where the config wants it, unless ``clients`` is False.
    """
    whole = {group.label: _judged(experiment, group, state) for group in experiment.groups}
    scores: dict[str, Any] = {"global": whole.get(""), "clients": {}}
    if experiment.config.groups:
        scores["groups"] = whole
    view = experiment.method.view
    if not clients or experiment.config.evaluation.clients is not True:
        return scores
    for key, split in (("clients", "test"), ("validation", "validation")):
        for id, client in experiment.clients.items():
            if own := client.evaluate(view(state, client.profile), memories.get(id), split):
                scores.setdefault(key, {})[str(id)] = own
    return scores


def _judged(experiment: Experiment, group: BuiltGroup, state: Tree) -> dict[str, float] | None:
    """The scores of a group's global model, if there is one and rows to judge it by."""
    order = experiment.method.view(state, group.server.profile)
    return (group.server.evaluate(order) or None) if is_whole(group, order) else None


def _line(experiment: Experiment, done: Round, engine: Engine, sent: Mapping[str, int]) -> dict[str, Any]:
    config, number = experiment.config, done.number
    due = (number + 1) % config.evaluation.every == 0 or number >= config.rounds - config.evaluation.last
    rates = [learning_rate_at(group.server.training, number, config.rounds) for group in experiment.groups]
    began = time.perf_counter()
    scores = evaluate(experiment, done.state, engine.memories, clients=engine.has_clients) if due else None
    return {
        "round": number,
        "seconds": done.seconds,
        "evaluation_seconds": time.perf_counter() - began,
        "learning_rate": rates[0],
        **({"learning_rates": rates} if config.groups else {}),
        "num_layers": max(group.layout.num_layers for group in experiment.groups),
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
        "state": _small(done.state),
    }


def _small(state: Tree) -> dict[str, Any]:
    """What a reader of the record may want of the state; of a method that runs apart, by key and architecture."""
    small = {key: value for key, value in state.items() if _is_small(value)}
    for name, own in state.get(APART, {}).items():
        for key, value in _small(own).items():
            small.setdefault(key, {})[name] = value
    return small


def _is_small(value: Any) -> bool:
    """Whether a part of the state is a number or a short list of numbers, which a reader of the record may want."""
    if isinstance(value, list):
        return len(value) <= 256 and all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float)
