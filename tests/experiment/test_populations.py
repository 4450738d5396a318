"""Populations of many clients: who sits out a round is not made for it, and the record keeps columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedquilt.core.types import ClientId
from fedquilt.experiment.build import build
from fedquilt.experiment.on_demand import OnDemand, together
from fedquilt.experiment.progress import Silent
from fedquilt.experiment.run import resume, run
from fedquilt.record import Record, read_partition
from fedquilt.record.client_table import MANY
from fedquilt.report.runs import client_table, read_run
from fedquilt.report.table import summary

CLIENTS = MANY + 100
CHANGES = (
    *("partition.scheme='iid'", f"partition.num_clients={CLIENTS}", "partition.test_fraction=0.1", "data.proxy=0"),
    *("clients.cohort=3", "training.steps=1", "data.limit=1797", "rounds=2", "method={name='fedit'}"),
)


@pytest.fixture
def of_many(config: Any) -> Any:
    """A run file with more clients than the record lists one by one."""
    return config("partition={scheme='iid'}", *CHANGES)


def test_a_run_of_many_clients_is_recorded_resumed_and_reported(
    of_many: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ClientId] = []
    rounds: list[int] = []
    look_up = OnDemand.__getitem__

    def watched(self: OnDemand, client: ClientId) -> Any:
        made.append(client)
        return look_up(self, client)

    class Watching(Silent):
        def started(self, name: str, first: int, rounds: int) -> None:
            made.clear()

        def round(self, line: Any) -> None:
            rounds.append(len(set(made)))
            made.clear()

    monkeypatch.setattr(OnDemand, "__getitem__", watched)
    folder = run(of_many, tmp_path / "run", Watching())
    assert rounds == [3, 3]
    stored = json.loads((folder / "partition.json").read_text())["clients"]
    assert stored["count"] == CLIENTS
    clients = read_partition(folder)["clients"]
    rows = [row for one in clients for kind in ("train", "validation", "test") for row in one[kind]]
    assert sorted(rows) == list(range(1797))
    assert [one["id"] for one in clients] == list(range(CLIENTS))
    assert list(clients) == list(build(of_many).partition["clients"])
    read = read_run(folder)
    assert len(client_table(read)) == CLIENTS
    assert 0 <= summary(read)["final"] <= 1
    _, whole, _ = Record.open(folder).load_checkpoint()
    resume(folder, back_to=1)
    _, again, _ = Record.open(folder).load_checkpoint()
    assert all(torch.equal(tensor, again["params"][name]) for name, tensor in whole["params"].items())


def test_a_client_is_the_same_whenever_it_is_looked_up(of_many: Any) -> None:
    experiment = build(of_many)
    first, again = experiment.clients[7], experiment.clients[7]
    split = experiment.partition["clients"][7]
    assert first.profile == again.profile == experiment.federation.profiles[7]
    assert first.profile.num_examples == len(split["train"])
    assert all(torch.equal(column, again.train[name]) for name, column in first.train.items())
    assert np.array_equal(first.splits["test"]["labels"], again.splits["test"]["labels"])
    assert list(experiment.clients) == list(range(CLIENTS))
    with pytest.raises(KeyError):
        experiment.clients[CLIENTS]


def test_clients_of_several_groups_are_one_mapping(of_many: Any) -> None:
    client = build(of_many).clients[0]
    both = together([OnDemand(range(2), lambda id: client), OnDemand({5: None}, lambda id: client)])
    assert list(both) == [0, 1, 5]
    assert both[5] is client
    assert 3 not in both
