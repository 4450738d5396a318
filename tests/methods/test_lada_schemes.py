"""LaDa over each scheme: neutral where it chooses all and adds nothing, and a filter of what the scheme transfers."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from schemes import FILE, config, end, same

from fedquilt.config.load import parse
from fedquilt.core.checks import reply_check
from fedquilt.core.errors import ConfigError
from fedquilt.core.loop import rounds
from fedquilt.core.server import server_start
from fedquilt.core.types import Failure, Reply
from fedquilt.core.wire import with_wire_dtype
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.build import Experiment, shaped
from fedquilt.experiment.engine import EMBEDDED
from fedquilt.record import read_rounds

SCHEMES = {
    "fedmkt": {"candidates": 6},
    "fedcot": {"candidates": 6, "path_tokens": 6, "path_bytes": 24},
    "fedcollm": {"candidates": 6},
}
SMALL = {"candidates": 6, "path_tokens": 6, "path_bytes": 24}


def ended(experiment: Experiment, num_rounds: int = 2) -> tuple[Any, dict[str, Any]]:
    """The state after some rounds, and what each client keeps of its model."""
    profiles, engine = experiment.federation.profiles, LocalEngine(experiment.clients)
    *_, done = rounds(
        experiment.method,
        lambda number: profiles,
        engine.send,
        experiment.rng,
        num_rounds=num_rounds,
        check=reply_check(profiles),
    )
    assert not any(moved.dropped for moved in done.traffic)
    return done.state, {str(client): memory.get("params", {}) for client, memory in engine.memories.items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lada_8_a_scheme_is_unchanged_to_the_bit_where_all_is_chosen(scheme: str) -> None:
    plain, own = ended(build(config(scheme, **SCHEMES[scheme])))
    wrapped, kept = ended(build(config("lada", scheme=scheme, filter="all", transfer=0.0, **SMALL)))
    assert same(plain["params"], wrapped["params"])
    assert same(plain["server"]["params"], wrapped["server"]["params"])
    assert same({client: own.get(client, {}) for client in kept}, kept)
    assert wrapped["offer"] is None  # no round comes
    numbers = [plain["told"][name] == wrapped["told"][name] for name in plain.get("told", {})]
    assert all(numbers)
    assert wrapped["server"]["memory"]["filters"].keys() == {"0", "1", "2"}


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[list[bool]]:
    """Which of the drawn questions a scheme was allowed to transfer, at each of its decisions."""
    from fedquilt.distill import public

    seen: list[list[bool]] = []

    def watched(taken: Any, count: int) -> torch.Tensor:
        found = public.allowed(taken, count)
        seen.append(found.tolist())
        return found

    monkeypatch.setattr(f"fedquilt.methods.{request.param}.allowed", watched)
    return seen


@pytest.mark.parametrize(("masks", "decisions"), [("fedmkt", 6), ("fedcot", 3), ("fedcollm", 2)], indirect=["masks"])
def test_a_scheme_transfers_chosen_samples_alone(
    masks: list[list[bool]], decisions: int, request: pytest.FixtureRequest
) -> None:
    """Half of six questions: of each client down and up, or of any client of an architecture."""
    scheme = request.node.callspec.params["masks"]
    state, _ = ended(build(config("lada", scheme=scheme, filter="random", **SMALL)), 1)
    assert len(masks) == decisions
    sizes = [sum(mask) for mask in masks]
    if scheme == "fedcollm":  # two clients of one architecture may have chosen different ones
        assert 3 <= max(sizes) <= 6
        assert min(sizes) == 3
    else:
        assert sizes == [3] * decisions
    assert len({tuple(mask) for mask in masks}) > 1
    assert all(state["told"][f"client_{client}_taken"] == 0.5 for client in range(3))


def test_a_server_that_its_scheme_does_not_train_learns_what_it_chose() -> None:
    """FedCoT's server stays as it is, unless it learns from the clients' paths."""
    for direction, moves in (("down", False), ("up", True)):
        start = build(config("lada", scheme="fedcot", direction=direction, filter="random", **SMALL))
        server = start.federation.server
        assert server is not None
        before = server_start(server, start.rng.child("init"))["params"]
        state, _ = ended(start, 1)
        assert same(state["server"]["params"], before) is not moves
        assert ("server_loss" in state["told"]) is moves
        assert state["server"]["round"] == 1


def test_a_scheme_without_lessons_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.scheme = 'fedmkt': has no effect with method\.direction = 'none'"):
        build(config("lada", scheme="fedmkt", direction="none"))


@pytest.mark.parametrize(
    ("method", "refused"),
    [
        ({"name": "lada"}, True),
        ({"name": "fedcollm"}, True),
        ({"name": "fedcot"}, True),
        ({"name": "fedmkt", "average": True}, True),
        ({"name": "fedcot", "average": False}, False),
        ({"name": "fedmkt"}, False),
    ],
)
def test_unlike_ranks_are_refused_where_factors_are_averaged(method: dict[str, Any], refused: bool) -> None:
    raw = tomllib.loads(FILE)
    first, *others = raw["groups"]
    groups = [{**first, "rank": 1}, {**first, "label": "same model"}, *others]
    settings = parse({**raw, "partition": {"num_clients": 6}, "groups": groups, "method": method})
    if not refused:
        assert shaped(settings).method.name == method["name"]
        return
    with pytest.raises(ConfigError, match=r"client 0 has rank 1, below that of .*, within which factors are averaged"):
        shaped(settings)


class Copying(LocalEngine):
    """An engine that copies the run between two exchanges of its second round: what a kill would leave there."""

    def __init__(self, clients: Any, memories: Any, run: str, folder: Path) -> None:
        super().__init__(clients, memories, run=run)
        self.folder = folder

    def send(self, exchange: Any, orders: Any) -> Iterator[Reply | Failure]:
        if exchange.name == "fit" and next(iter(orders.values())).round == 1:
            shutil.copytree(self.folder, self.folder.parent / "killed")
        yield from super().send(exchange, orders)


def test_a_run_killed_between_two_exchanges_of_a_round_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = config("lada", scheme="fedmkt", **SMALL)

    def make(experiment: Experiment, key: str, memories: Any, progress: Any) -> Copying:
        return Copying(experiment.clients, memories, key, tmp_path / "whole")

    whole = run(settings, tmp_path / "whole", connect=EMBEDDED._replace(make=make))
    assert [line["round"] for line in read_rounds(tmp_path / "killed")] == [0]
    resume(tmp_path / "killed")
    assert same(end(tmp_path / "killed"), end(whole))
    lines = [[line["state"] for line in read_rounds(tmp_path / name)] for name in ("killed", "whole")]
    assert lines[0] == lines[1]


@pytest.fixture(scope="module")
def lada() -> Experiment:
    return build(config("lada", filter="random", **SMALL))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_is_not_sent_again_changes_no_bit(lada: Experiment, dtype: str) -> None:
    found, sent, experiment = [], [], lada
    for keeps in (True, False):
        method = experiment.method
        method = method._replace(exchanges=tuple(one._replace(keeps=one.keeps and keeps) for one in method.exchanges))
        method = method if dtype == "float32" else with_wire_dtype(method, dtype)
        profiles, engine = experiment.federation.profiles, LocalEngine(experiment.clients)
        done = [*rounds(method, lambda number: profiles, engine.send, experiment.rng, num_rounds=2)]  # noqa: B023
        found.append([done[-1].state, {str(client): memory for client, memory in engine.memories.items()}])
        sent.append([sum(moved.bytes_down.values()) for one in done for moved in one.traffic])
    assert same(*found)
    assert sent[0][0] == sent[1][0]
    assert sent[0][1] < sent[1][1]
