"""Runs with a server that owns a model and data: embedded, over Flower, resumed, exported, refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from teaching import TRAITS, teaching

from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.plan import plan
from fedquilt.methods import registry
from fedquilt.record import Record, read_rounds

FILE = """
rounds = 3
threads = 1
device = "cpu"
model = { name = "tiny:llama?layers=2&width=16", task = "causal-lm", max_length = 48 }
data = { source = "arithmetic:blank?train=60&test=8" }
partition = { scheme = "iid", num_clients = 3 }
clients = { budgets = [1, 2, 2] }
adapter = { rank = 2 }
training = { steps = 2, batch_size = 4, learning_rate = 0.01 }
method = { name = "teaching" }

[server]
model = { name = "tiny:llama?layers=3&width=24", task = "causal-lm", max_length = 48 }
data = { source = "arithmetic:blank?train=20&test=6" }
adapter = { rank = 4 }
training = { steps = 3 }
"""


def config(**changes: object) -> Config:
    raw = tomllib.loads(FILE)
    return parse({**raw, **changes})


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.ENTRIES, "teaching", registry.Entry(teaching, TRAITS))


def test_the_server_trains_its_own_model_on_its_own_rows(tmp_path: Path) -> None:
    experiment = build(config())
    server = experiment.federation.server
    assert server is not None
    assert server.worker.id == -1
    assert server.architecture == "llama-3x24"
    assert (len(server.questions.texts), len(server.questions.answers or ())) == (20, 20)
    assert experiment.federation.layouts.keys() == {"llama-2x16"}
    folder = run(config(), tmp_path / "run")
    _, state, memories = Record.open(folder).load_checkpoint()
    own = state["server"]
    assert own["round"] == 3
    assert own["memory"] == {"answers": 3 * 3 * 3}
    start = experiment.method.init(experiment.rng.child("init"))["server"]["params"]
    assert own["params"].keys() == start.keys() == server.layout.depth.keys()
    assert any(not torch.equal(own["params"][name], start[name]) for name in start)
    assert all(memory["params"].keys() <= experiment.layout.depth.keys() for memory in memories.values())


def test_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, again = run(config(), tmp_path / "whole"), run(config(), tmp_path / "again")
    resume(again, back_to=2)
    assert (whole / "checkpoint.json").is_file()
    left, right = (Record.open(folder).load_checkpoint() for folder in (whole, again))
    for name, tensor in left[1]["server"]["params"].items():
        assert torch.equal(tensor, right[1]["server"]["params"][name])
    assert left[1]["server"]["seed"] == right[1]["server"]["seed"]
    assert [line["state"] for line in read_rounds(whole)] == [line["state"] for line in read_rounds(again)]


def test_a_plan_counts_the_texts(tmp_path: Path) -> None:
    (first, *_) = plan(config())
    assert first.bytes_down == 3 * (64 + 4)
    assert first.bytes_up == 3 * (24 + 4) + 3 * 4
