"""A tiny federation of language models with a server that owns one, for the tests of methods that use it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.checks import reply_check
from fedquilt.core.loop import rounds
from fedquilt.core.method import Exchange, Method
from fedquilt.core.types import Memory, Order, Reply
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment import run
from fedquilt.experiment.build import Experiment
from fedquilt.record import Record

FILE = """
rounds = 2
threads = 1
device = "cpu"
evaluation = { every = 2, limit = 2 }
data = { source = "arithmetic:blank?train=24&test=4", answers = "number", new_tokens = 6 }
partition = { scheme = "iid", num_clients = 3 }
adapter = { rank = 2 }
training = { steps = 2, batch_size = 4, learning_rate = 0.01 }

[model]
name = "tiny:llama?layers=1&width=16"
task = "causal-lm"
max_length = 48

[[groups]]
label = "small"
budget = 1
share = 1

[[groups]]
label = "wide"
budget = 2
share = 2
model = { name = "tiny:gemma?layers=2&width=16", task = "causal-lm", max_length = 48 }

[server]
model = { name = "tiny:llama?layers=1&width=24", task = "causal-lm", max_length = 48 }
data = { source = "arithmetic:blank?train=20&test=4", answers = "number", new_tokens = 6 }
"""


def config(name: str, changes: dict[str, Any] | None = None, **method: Any) -> Config:
    """The run file with this method; ``changes`` are to its sections."""
    return parse({**tomllib.loads(FILE), **(changes or {}), "method": {"name": name, **method}})


def end(folder: Path) -> list[Any]:
    """The state and the memories at the end of a run."""
    _, state, memories = Record.open(folder).load_checkpoint()
    return [state, memories]


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = {key: value for name, inner in pairs for key, value in flat(inner, f"{path}/{name}").items()}
    return found if isinstance(tree, dict | list) else {path: tree}


def same(left: Any, right: Any) -> bool:
    """Whether two trees are equal to the bit."""
    left, right = flat(left), flat(right)
    pairs = [(left[name], right.get(name)) for name in left]
    alike = (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
    return left.keys() == right.keys() and all(alike)


def played(experiment: Experiment, method: Method | None = None) -> Any:
    """The state after one round, in which every reply passes all checks."""
    method, profiles = method or experiment.method, experiment.federation.profiles
    send, check = LocalEngine(experiment.clients).send, reply_check(profiles)
    (done,) = rounds(method, lambda number: profiles, send, experiment.rng, num_rounds=1, check=check)
    assert not any(moved.dropped for moved in done.traffic)
    return done.state


def travelled(experiment: Experiment, most: int = 2) -> list[tuple[str, Order, Reply]]:
    """All orders and replies of one round, or of its first exchanges, with the names of these."""
    seen: list[tuple[str, Order, Reply]] = []

    def watched(exchange: Exchange) -> Exchange:
        def work(client: Any, order: Order, memory: Memory) -> tuple[Reply, Memory]:
            reply, after = exchange.work(client, order, memory)
            seen.append((exchange.name, order, reply))
            return reply, after

        return exchange._replace(work=work)

    exchanges = tuple(map(watched, experiment.method.exchanges[:most]))
    played(experiment, experiment.method._replace(exchanges=exchanges))
    return seen


def over_flower(settings: Config, folder: Path) -> Path:
    """A run over Flower in this process: clients build their own part alone."""
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    grid = InProcessGrid(client_app(flower_site.joined(settings), folder / "sites"), 3)
    quick = settings.network.model_copy(update={"timeout": 60.0, "wait": 60.0})
    settings = settings.model_copy(update={"network": quick})
    return run(settings, folder / "flower", connect=flower.over(grid, settings, name="in-process", poll=0.05))


def changed(before: Any, after: Any, names: Iterable[str]) -> set[str]:
    """Which of these tensors of two maps differ."""
    return {name for name in names if not torch.equal(before[name], after[name])}
