"""Runs read from their folders as plain values.

Reading needs neither torch nor a model, so a folder can be read years later on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.core.errors import RunError
from fedquilt.core.shell import command
from fedquilt.record.read import read_config, read_environment, read_partition, read_result, read_rounds

BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B"))
"""Units in which plots count bytes, largest first."""

_DIVERGED = "_diverged"  # ends the name that core.server.fit_told gives such a training


@dataclass(frozen=True)
class Run:
    """The parsed files of one run folder.

    Attributes
    ----------
    folder
        The run folder.
    config
        The resolved config.
    environment
        Versions, device and time.
    partition
        The rows, labels, budget and architecture of each client.
    rounds
        One record per finished round.
    result
        The result; None while the run is unfinished.
    """

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    partition: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether the run completed its last round."""
        return self.result is not None and self.result.get("status", "finished") == "finished"

    @cached_property
    def clients(self) -> Sequence[Mapping[str, Any]]:
        """The clients of the partition, sorted by id."""
        return sorted(self.partition.get("clients", ()), key=lambda client: int(client["id"]))

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        return self.config.get("seed")

    @property
    def method(self) -> str:
        """The method's name."""
        return str((self.config.get("method") or {}).get("name", "unnamed method"))

    @property
    def label(self) -> str | None:
        """The run's label in the comparison that it was made for; None if there was none."""
        label = self.environment.get("label")
        return None if label is None else str(label)

    @property
    def name(self) -> str:
        """The experiment's name in the run file, or the folder's name."""
        return str(self.config.get("name") or self.folder.name)


def read_run(folder: str | Path) -> Run:
    """Read the run in ``folder``, which may be unfinished (no ``result.json``).

    Rounds that the last checkpoint does not include are left out; see ``record.read_rounds``.

    Raises
    ------
    RunError
        if the folder is no run, a file in it is damaged or was changed, or no round has been finished.
    """
    folder = Path(folder)
    config, environment, partition = read_config(folder), read_environment(folder), read_partition(folder)
    rounds = tuple(read_rounds(folder))
    if not rounds:
        raise RunError(
            f"{folder}: no round has been finished yet, so there is nothing to report; "
            f"continue with: {command('run', '--resume', folder)}"
        )
    return Run(folder, config, environment, partition, rounds, read_result(folder))


def as_number(value: Any) -> float:
    """Return a number of the record as a float; null stands for a number that was not finite and becomes NaN."""
    return float("nan") if value is None else float(value)


def cumulative_bytes(run: Run) -> tuple[list[int], list[int], list[int]]:
    """Return the rounds, and the cumulative bytes that all clients uploaded and downloaded through each round."""
    rounds, up, down = [], [0], [0]
    for line in run.rounds:
        sent_up, sent_down = bytes_of(line)
        rounds.append(int(line["round"]))
        up.append(up[-1] + sent_up)
        down.append(down[-1] + sent_down)
    return rounds, up[1:], down[1:]


def all_bytes(run: Run) -> tuple[int, int]:
    """Return the bytes that all clients uploaded and downloaded in the whole run, closing exchanges included."""
    _, up, down = cumulative_bytes(run)
    closing_up, closing_down = bytes_of((run.result or {}).get("closing") or {})
    return up[-1] + closing_up, down[-1] + closing_down


def bytes_of(line: Mapping[str, Any]) -> tuple[int, int]:
    """Return the bytes that all clients uploaded and downloaded in one round of the record."""
    moved = [own for exchange in line.get("exchanges") or () for own in (exchange.get("clients") or {}).values()]
    return sum(int(own.get("bytes_up", 0)) for own in moved), sum(int(own.get("bytes_down", 0)) for own in moved)


def exchange_bytes(run: Run) -> dict[tuple[str, str], tuple[list[int], list[int]]]:
    """Return rounds and bytes in each, of all clients, by exchange and ``"down"`` or ``"up"``."""
    found: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for line in run.rounds:
        for exchange in line.get("exchanges") or ():
            up, down = bytes_of({"exchanges": [exchange]})
            for way, size in (("down", down), ("up", up)):
                rounds, sizes = found.setdefault((str(exchange.get("exchange", "")), way), ([], []))
                rounds.append(int(line["round"]))
                sizes.append(size)
    return found


def client_table(run: Run) -> Sequence[Mapping[str, Any]]:
    """Return the clients of the partition, sorted by id."""
    return run.clients


def client_names(run: Run) -> dict[int, str]:
    """Return the clients' names by id: the name in the data if it has one, otherwise the number."""
    return {int(client["id"]): str(client.get("name") or client["id"]) for client in client_table(run)}


def budget_layers(client: Mapping[str, Any]) -> int | None:
    """Return how many layers a client of the partition may train; None where no budget was recorded."""
    budget = client.get("budget")
    if isinstance(budget, Mapping):
        budget = budget.get("layers")
    return None if budget is None else int(budget)


def allocation(run: Run) -> tuple[list[int], np.ndarray]:
    """Return the client ids, and in how many rounds each client trained each layer: int (layers, clients).

    Only replies that were used count, and a client that trained a layer in several exchanges of a round counts once.
    All counts are zero if the method allocates no ``layers``.
    """
    ids = [int(client["id"]) for client in client_table(run)]
    trained: list[tuple[int, int]] = []  # (layer, client), once per round
    num_layers = max((int(line.get("num_layers") or 0) for line in run.rounds), default=0)
    for line in run.rounds:
        pairs = set()
        for exchange in line.get("exchanges") or ():
            for client, sent in (exchange.get("clients") or {}).items():
                if client not in (exchange.get("dropped") or {}):
                    pairs |= {(int(layer), int(client)) for layer in (sent.get("settings") or {}).get("layers") or ()}
        trained += sorted(pairs)
    num_layers = max([num_layers, *(layer + 1 for layer, _ in trained)])
    ids = sorted({*ids, *(client for _, client in trained)})
    place = {client: at for at, client in enumerate(ids)}
    counts = np.zeros((num_layers, len(ids)), dtype=np.int64)
    for layer, client in trained:
        counts[layer, place[client]] += 1
    return ids, counts


def dropped(run: Run) -> list[dict[str, Any]]:
    """Return every dropped reply in order: round, exchange, client and reason."""
    return [
        {"round": int(line["round"]), "exchange": exchange.get("exchange", ""), "client": int(client), "reason": reason}
        for line in run.rounds
        for exchange in (line.get("exchanges") or ())
        for client, reason in (exchange.get("dropped") or {}).items()
    ]


def diverged(line: Mapping[str, Any]) -> list[str]:
    """Return which models the server could not train in a round, as a loss or a gradient was not finite."""
    state = line.get("state") or {}
    return [name.removesuffix(_DIVERGED) for name in sorted(state) if name.endswith(_DIVERGED) and state[name]]


def messages(run: Run) -> dict[str, int]:
    """Return how many messages were sent to clients over a network, by type; empty for a run in one process."""
    counts: dict[str, int] = {}
    for line in (*run.rounds, (run.result or {}).get("closing") or {}):
        for kind, count in (line.get("messages") or {}).items():
            counts[kind] = counts.get(kind, 0) + int(count)
    return counts


def resumed(run: Run) -> list[int]:
    """Return the rounds at which the run was resumed."""
    return [int(line["round"]) for line in run.rounds if line.get("resumed")]


def privacy(run: Run) -> Mapping[str, Any] | None:
    """Return the privacy record of the last round; None for a run without differential privacy.

    Its ``epsilon`` is the one that assumes no secret, also for runs whose record had another one under this key.
    """
    spent = run.rounds[-1].get("privacy") or None
    return None if spent is None else {**spent, "epsilon": spent.get("epsilon_known_cohorts", spent["epsilon"])}


def layer_probabilities(run: Run) -> dict[str, tuple[list[int], np.ndarray]]:
    """Return, by group, the rounds that recorded layer probabilities, and these as float (layers, rounds).

    They are the probabilities of the first draw and sum to 1 in each round; a layer's probability of being trained is
    larger and grows with a client's budget. A method that records one list has one group named ``""``.
    """
    found: dict[str, tuple[list[int], list[list[float]]]] = {}
    for line in run.rounds:
        kept = (line.get("state") or {}).get("probabilities")
        for group, values in (kept if isinstance(kept, Mapping) else {"": kept}).items():
            if values:
                rounds, rows = found.setdefault(str(group), ([], []))
                rounds.append(int(line["round"]))
                rows.append([as_number(value) for value in values])
    return {group: (rounds, np.array(rows).T) for group, (rounds, rows) in found.items()}


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group the runs that differ only in their seed, ordered by seed; returns the groups by label.

    The label is the run's label in its comparison, otherwise the method's name. If several groups have one label, the
    method's settings are added to it, and a number if that is not enough.
    """
    equal: dict[str, list[Run]] = {}
    for run in runs:
        about = {
            key: value
            for key, value in run.config.items()
            if key not in ("seed", "seeds", "output", "compare", "track")
        }
        equal.setdefault(json.dumps([run.label, about], sort_keys=True, default=str), []).append(run)
    members = list(equal.values())
    short = [group[0].label or group[0].method for group in members]
    groups: dict[str, list[Run]] = {}
    for label, group in zip(short, members, strict=True):
        if short.count(label) > 1:
            settings = {key: value for key, value in (group[0].config.get("method") or {}).items() if key != "name"}
            label += " ".join(["", *(f"{key}={value}" for key, value in settings.items())])
        unique, number = label, 2
        while unique in groups:
            unique, number = f"{label} ({number})", number + 1
        groups[unique] = sorted(group, key=lambda run: (run.seed is None, run.seed or 0))
    return groups
