"""LaDa in whole runs of tiny random models: who is taught what, what travels, resume, and both engines."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import schemes
import torch
from schemes import FILE, end, flat, same, travelled

from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.checks import reply_check
from fedquilt.core.errors import ConfigError
from fedquilt.core.loop import rounds
from fedquilt.core.method import Method
from fedquilt.core.params import num_bytes
from fedquilt.core.texts import unpack_texts
from fedquilt.core.types import Memory, Order, Reply
from fedquilt.distill import messages
from fedquilt.distill.contrast import Contrast
from fedquilt.distill.messages import Paths
from fedquilt.distill.reward import Reward
from fedquilt.distill.selection import FilterSettings
from fedquilt.distill.student import Lesson, Teaching
from fedquilt.distill.wrapper import with_lada
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.build import Experiment
from fedquilt.experiment.plan import whole_plan
from fedquilt.methods import METHODS
from fedquilt.methods.by_architecture import by_architecture
from fedquilt.record import read_rounds


def config(**method: Any) -> Config:
    return schemes.config("lada", **{"candidates": 6, "path_tokens": 6, "path_bytes": 24, **method})


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config(), tmp_path_factory.mktemp("lada") / "run")


def test_both_sides_learn_and_each_filter_stays_with_its_student(taught: Path) -> None:
    state, memories = end(taught)
    assert state["server"]["round"] == 2
    assert sorted(state["server"]["memory"]["filters"]) == ["0", "1", "2"]
    for pupil in [
        *state["server"]["memory"]["filters"].values(),
        *(own["lesson"]["filter"] for own in memories.values()),
    ]:
        assert pupil["version"] == 2
        assert len(pupil["filter"]["replay"]["labels"]) == 9  # one of each cluster of six candidates, then half of them
        assert pupil["history"]["previous"] is not None
    assert not [name for name in flat(state) if "replay" in name and "/server/memory/" not in name]
    assert state["answers"] == {}
    for line in read_rounds(taught):
        assert line["state"]["unread"] == 0.0
        assert {"server_loss", "server_right", "client_0_taken", "client_2_right"} <= line["state"].keys()
        assert {"client_1_taken_right", "client_1_label_error"} <= line["state"].keys()


def test_a_run_goes_on_to_the_same_bits(taught: Path, tmp_path: Path) -> None:
    again = shutil.copytree(taught, tmp_path / "again")
    resume(again, back_to=1)
    assert same(end(taught), end(again))


def one_round(experiment: Experiment, method: Method, clients: Any) -> Any:
    """The state after one round of a method among these clients."""
    profiles, send = experiment.federation.profiles, LocalEngine(clients).send
    (done,) = rounds(method, lambda number: profiles, send, experiment.rng, num_rounds=1)
    return done.state


def played_of(made: Config) -> Any:
    """The state after one round."""
    experiment = build(made)
    return one_round(experiment, experiment.method, experiment.clients)


def played(**method: Any) -> Any:
    """The state after one round of LaDa with these settings."""
    return played_of(config(**method))


@pytest.fixture(scope="module")
def nobody() -> Any:
    return played(direction="none", candidates=32, path_tokens=64, path_bytes=256)


@pytest.mark.parametrize(("direction", "clients", "server"), [("down", True, False), ("up", False, True)])
def test_each_direction_teaches_its_own_side(nobody: Any, direction: str, clients: bool, server: bool) -> None:
    state = played(direction=direction)
    assert same(state["params"], nobody["params"]) is not clients
    assert same(state["server"]["params"], nobody["server"]["params"]) is not server


def test_lada_8_all_samples_without_weight_change_nothing_to_the_bit(nobody: Any) -> None:
    """Clients and server are as if nobody taught anybody."""
    idle = played(filter="all", transfer=0.0)
    assert same(idle["params"], nobody["params"])
    assert same(idle["server"]["params"], nobody["server"]["params"])


def test_with_nobody_taught_it_is_federated_averaging() -> None:
    raw = tomllib.loads(FILE)
    one = {key: raw[key] for key in raw.keys() - {"groups", "server"}} | {"clients": {"budgets": [1, 1, 1]}}
    with_server = {**one, "server": raw["server"], "method": {"name": "lada", "direction": "none"}}
    plain, beside = (played_of(parse(file)) for file in ({**one, "method": {"name": "fedit"}}, with_server))
    ours = {name.partition("/")[2]: tensor for name, tensor in beside["params"].items()}
    assert same(ours, plain["params"])


def test_any_method_with_a_training_exchange_can_be_taught() -> None:
    """Only B travels under FFA-LoRA, with lessons beside it, and A stays frozen."""
    experiment = build(config())
    federation = experiment.federation
    scheme = by_architecture(METHODS["ffa-lora"], federation)
    teaching, paths = Teaching(FilterSettings(), Contrast(), Reward()), Paths(4, 3, 12, 0.7)
    method = with_lada(lambda own: by_architecture(METHODS["ffa-lora"], own), federation, teaching, paths)
    clients = {id: replace(client, model=method.model) for id, client in experiment.clients.items()}
    apart = [
        one_round(experiment, made, {id: replace(client, model=made.model) for id, client in clients.items()})["apart"]
        for made in (scheme, method)
    ]
    names = [name for name in flat(apart[0]) if name.endswith(("lora_A", "lora_B"))]
    changed = {name for name in names if not torch.equal(flat(apart[0])[name], flat(apart[1])[name])}
    assert changed
    assert all(name.endswith("lora_B") for name in changed)


def test_likelihoods_that_the_server_knows_are_those_that_it_would_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has scored its own paths when it wrote them, and does not read them again for each client."""
    known = played()
    plain, seen = messages.lesson_up, list[Lesson]()

    def unknown(*given: Any) -> Lesson:
        seen.append(plain(*given))
        return seen[-1]._replace(mine=None)

    monkeypatch.setattr("fedquilt.distill.teacher.lesson_up", unknown)
    assert same(played(), known)
    assert [lesson.mine is None for lesson in seen] == [False] * 3


# What travels ------------------------------------------------------------


def test_lada_9_nothing_private_crosses_the_wire() -> None:
    """Up go a client's paths on public questions, four scalars of each, its adapters, and nothing else."""
    experiment = build(config())
    server = experiment.federation.server
    assert server is not None
    seen = travelled(experiment)
    assert [name for name, _, _ in seen] == ["paths"] * 3 + ["fit"] * 3
    for name, order, reply in seen:
        lesson = {key for key in reply.params if key.startswith("lesson.")}
        down = {key: value for key, value in order.params.items() if key.startswith("lesson.")}
        if name == "fit":
            assert num_bytes(down) == 6 * 8
            layout = experiment.federation.layouts[order.settings["architecture"]]
            assert reply.params.keys() <= layout.depth.keys()
            assert reply.metrics.keys() - {"label_correlation"} == {
                *("loss", "accuracy", "steps", "taken", "taken_right", "label_error")
            }
            continue
        questions = unpack_texts(order.params, "lesson.questions")
        assert set(questions) <= set(server.questions.texts)
        assert num_bytes(down) == 6 * (max(len(text.encode()) for text in questions) + 4 + 24 + 4 + 8 + 4)
        texts = {"lesson.own.bytes": 6 * 24, "lesson.own.lengths": 6 * 4}
        numbers = {f"lesson.{who}.{what}": 6 * 4 for who in ("own", "heard") for what in ("total", "tokens")}
        sizes = {key: tensor.numel() * tensor.element_size() for key, tensor in reply.params.items()}
        assert sizes == {**texts, **numbers}
        assert lesson == reply.params.keys()
        assert reply.metrics == {}


@pytest.mark.parametrize("direction", ["both", "none"])
def test_what_is_planned_is_what_then_travels_and_what_the_formula_says(taught: Path, direction: str) -> None:
    """Q (q + 4 + b + 4 + 8 + 8 + 4) bytes go down beside the adapter, which goes once, and Q (b + 4 + 16) come up."""
    nobody = {"candidates": 32, "path_tokens": 64, "path_bytes": 256} if direction == "none" else {}
    planned, server = whole_plan(config(direction=direction, **nobody))
    line = read_rounds(taught)[0]
    assert server is not None
    assert server.peak_bytes > server.weight_bytes > max(one.weight_bytes for one in planned)
    questions = build(config()).federation.server.questions.texts
    for one in planned:
        paths, fit = (exchange["clients"][str(one.client)] for exchange in line["exchanges"])
        adapter = fit["bytes_up"]
        if direction == "none":
            assert (one.bytes_down, one.bytes_up) == (adapter, adapter)
            continue
        assert one.bytes_down == paths["bytes_down"] + fit["bytes_down"]
        assert one.bytes_up == paths["bytes_up"] + fit["bytes_up"] == adapter + 6 * (24 + 4 + 16)
        assert fit["bytes_down"] == 6 * 8
        longest = (one.bytes_down - adapter) / 6 - (4 + 24 + 4 + 8 + 8 + 4)
        assert longest in {len(text.encode()) for text in questions}


def test_a_plan_counts_the_rows_of_the_lessons() -> None:
    """More samples of each teacher need more memory on both sides, and only on the side that is taught."""
    few, many, down = (whole_plan(config(**own)) for own in ({}, {"samples": 64}, {"samples": 64, "direction": "down"}))
    assert few.server.activation_bytes < many.server.activation_bytes
    assert few.clients[0].activation_bytes < many.clients[0].activation_bytes == down.clients[0].activation_bytes
    assert down.server.activation_bytes < few.server.activation_bytes


def test_a_plan_of_the_server_counts_its_teachers() -> None:
    """One for each answer, the student of each of two architectures, or each of three clients; so many rows a step."""

    def needed(name: str, clients: int = 3, **method: Any) -> int:
        partition = {"partition": {"scheme": "iid", "num_clients": clients}}
        server = whole_plan(schemes.config(name, partition, **method)).server
        assert server is not None
        return server.activation_bytes

    alone = {"direction": "up", "contrast": 0.0}
    rows = needed("fedmkt", samples=48)
    assert rows == needed("fedcollm", samples=24) == needed("lada", samples=16, **alone)
    assert rows == needed("fedmkt", 6, samples=48) == needed("lada", 6, samples=8, **alone)


def test_lada_9_what_a_client_says_does_not_depend_on_its_rows() -> None:
    """With other private rows the same model sends the same paths and scalars, before it has trained on them."""
    first = build(config())
    swapped = {}
    for id, client in first.clients.items():
        rows = {name: column.flip(0)[:3] for name, column in client.train.items()}
        swapped[id] = replace(client, train=rows, splits={})
    other = replace(first, clients=swapped)
    told = [[reply.params for _, _, reply in travelled(one, 1)] for one in (first, other)]
    assert [len(replies) for replies in told] == [3, 3]
    assert same(*told)


def test_a_reply_that_is_no_text_counts_as_no_answer() -> None:
    experiment = build(config())
    paths = experiment.method.exchanges[0]

    def work(client: Any, order: Order, memory: Memory) -> tuple[Reply, Memory]:
        reply, after = paths.work(client, order, memory)
        if client.id == 1:
            reply.params["lesson.own.bytes"][:, :2] = 255
            reply.params["lesson.own.lengths"][:] = 2
        return reply, after

    method = experiment.method._replace(exchanges=(paths._replace(work=work), *experiment.method.exchanges[1:]))
    profiles = experiment.federation.profiles
    send = LocalEngine(experiment.clients).send
    (done,) = rounds(method, lambda n: profiles, send, experiment.rng, num_rounds=1, check=reply_check(profiles))
    assert done.state["told"]["unread"] == 1.0
    assert sorted(done.state["server"]["memory"]["filters"]) == ["0", "2"]
    assert "taken" not in done.traffic[1].metrics[1]


# What is refused ------------------------------------------------------------


def test_without_a_server_it_is_refused() -> None:
    raw = tomllib.loads(FILE)
    del raw["server"]
    raw["method"] = {"name": "lada"}
    with pytest.raises(ConfigError, match="needs a server that owns a model and data"):
        build(parse(raw))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"filter": "all", "share": 0.3}, "share"),
        ({"direction": "none", "candidates": 3}, "candidates"),
        ({"contrast": 0.0, "beta": 1.0}, "beta"),
        ({"filter": "random", "explore": 0.1}, "explore"),
        ({"filter": "oracle"}, "filter"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{said}"):
        build(config(**settings))


# Over Flower ------------------------------------------------------------


def test_flower_ends_in_the_same_bits(taught: Path, tmp_path: Path) -> None:
    """Clients build their own part alone, with the shapes of the server's model and none of its questions."""
    pytest.importorskip("flwr")
    assert same(end(schemes.over_flower(config(), tmp_path))[0], end(taught)[0])
