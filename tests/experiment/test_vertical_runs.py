"""Vertical federations: embedded, over Flower, resumed, with parties missing; what travels, and what is refused."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parties import FILES, of_files, write_files
from torch.nn import functional

from fedquilt.config.load import parse
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.loop import rounds
from fedquilt.core.types import Failure, Order, Reply, Turn
from fedquilt.core.vertical import ALIGNED
from fedquilt.engine.local import LocalEngine
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.check import check
from fedquilt.experiment.engine import EMBEDDED
from fedquilt.experiment.export import export
from fedquilt.experiment.vertical_predict import predicted_together
from fedquilt.record import Record, read_config, read_partition, read_rounds
from fedquilt.record.tree_bytes import tree_to_bytes
from fedquilt.report.comparison import comparison
from fedquilt.report.parties import kept_of, kept_rows
from fedquilt.report.runs import read_run
from fedquilt.vertical.prototypes import unit
from fedquilt.vertical.semantic import made_of

FILE = """
rounds = 3
threads = 1
device = "cpu"
model = { name = "tiny:vit?layers=2&width=16&image=8&patch=4", task = "image-classification" }
data = { source = "sklearn:digits", limit = 400 }
partition = { scheme = "vertical", aligned = 24, aligned_classes = ["2", "5"], unaligned = 40, width = 8 }
adapter = { kind = "full" }
training = { steps = 2, batch_size = 8, learning_rate = 0.01 }
evaluation = { every = 2, last = 1 }
method = { name = "proto-evfl", minibatches = 2 }

[[parties]]
label = "left"
view = ["left"]
classes = ["0", "1", "2"]

[[parties]]
label = "right"
view = ["top-right", "bottom-right"]
labelled = false
model = { name = "tiny:vit?layers=1&width=24&image=8&patch=4", task = "image-classification" }

[[parties]]
label = "bottom"
view = ["bottom"]
classes = ["3", "4", "5"]
"""
PUBLISHED = ("vfl-few-shot", "vfl-hssl", "vfl-cvt")
METHODS = ("proto-evfl", "vfl-split", "vfl-local", "vfl-ensemble", "vfl-central", *PUBLISHED)


def config(**changes: Any) -> Config:
    raw = tomllib.loads(FILE)
    for section, keys in changes.items():
        raw[section] = {**raw.get(section, {}), **keys} if isinstance(keys, dict) else keys
    return parse(raw)


def test_parties_are_not_trained_side_by_side() -> None:
    with pytest.raises(ConfigError, match=r"engine: batch_clients = 2 is for clients with one model, and the parties"):
        config(engine={"batch_clients": 2})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run. Not to be changed."""
    return run(config(), tmp_path_factory.mktemp("vertical") / "run")


def ended(folder: Path) -> bytes:
    return tree_to_bytes(Record.open(folder).load_checkpoint()[1])


def test_parties_hold_other_rows_and_only_the_active_one_labels_of_aligned_rows() -> None:
    experiment = build(config())
    vertical = experiment.federation.vertical
    assert vertical is not None
    assert vertical.parties == ("left", "right", "bottom")
    assert (len(vertical.labels), vertical.width, len(vertical.classes)) == (24, 8, 10)
    assert set(vertical.labels.tolist()) == {2, 5}
    for party in (*experiment.clients.values(), vertical.active):
        assert (party.splits[ALIGNED]["labels"] == -1).all()
        assert party.profile.num_examples == 24 + len(party.train["labels"])
    left, right = experiment.clients[0].train["labels"], experiment.clients[1].train["labels"]
    assert set(left.tolist()) <= {0, 1, 2}
    assert (right == -1).all()
    record = experiment.partition
    rows = [set(one["train"]) for one in record["clients"]]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & set(record["vertical"]["aligned_rows"])


def test_proto_10_messages_have_the_stated_shapes_and_bytes(whole: Path) -> None:
    for line in read_rounds(whole):
        embed, follow, *shown = line["exchanges"]
        assert [one["exchange"] for one in line["exchanges"]] == ["embed", "follow", "predict"]
        batches, rows, width, classes = 2, 8, 8, 10
        up, down = batches * rows * width + classes * width + 2 * classes, batches * rows * width + classes * width
        for client in ("0", "1"):
            assert embed["clients"][client]["bytes_up"] == 4 * up
            assert embed["clients"][client]["bytes_down"] == 4 * classes
            assert follow["clients"][client] | {"settings": {}} == follow["clients"][client] | {
                "settings": {},
                "bytes_down": 4 * down,
                "bytes_up": 0,
            }
        tested = read_partition(whole)["vertical"]["test"]
        (predict,) = shown
        assert {one["bytes_up"] for one in predict["clients"].values()} <= {4 * tested * width}
    assert [len(line["exchanges"][2]["clients"]) for line in read_rounds(whole)] == [0, 2, 2]


def watched(settings: Config, folder: Path) -> list[tuple[str, Order, Reply]]:
    """Every message of a run: the exchange, the order and its reply."""
    moved: list[tuple[str, Order, Reply]] = []

    class Recording(LocalEngine):
        def send(self, exchange: Any, orders: Any) -> Any:
            for reply in super().send(exchange, orders):
                moved.append((exchange.name, orders[reply.client], reply))
                yield reply

    connect = EMBEDDED._replace(
        make=lambda experiment, key, memories, progress: Recording(experiment.clients, memories)
    )
    run(settings, folder, connect=connect)
    return moved


ROWS, MOST, WIDTH, CLASSES = 24, 16, 8, 10
TOLD = {"embeddings": (MOST, WIDTH), "prototypes": (CLASSES, WIDTH), "prior": (CLASSES,), "counts": (CLASSES,)}
FOLLOW = {"embeddings": (2, 8, WIDTH), "prototypes": (CLASSES, WIDTH)}
HEAD = {"joint.head.weight": (CLASSES, 3 * WIDTH), "joint.head.bias": (CLASSES,)}
OTHERS = {"others": (MOST, 2, WIDTH)}
WIRE: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {
    # what may be in an order and in a reply of the exchanges embed and follow, by name and shape
    "proto-evfl": {"down": {"prior": (CLASSES,)}, "up": TOLD, "follow": FOLLOW},
    "vfl-hssl": {"down": {"prior": (CLASSES,), **OTHERS}, "up": TOLD, "follow": FOLLOW},
    "vfl-cvt": {"down": {"prior": (CLASSES,), **OTHERS, **HEAD}, "up": {**TOLD, **HEAD}, "follow": FOLLOW},
    "vfl-few-shot": {
        "down": {},
        "up": {**TOLD, "embeddings": (ROWS, WIDTH)},
        "follow": {"embeddings": (1, ROWS, WIDTH)},
    },
}


@pytest.mark.parametrize("method", WIRE)
def test_proto_10_no_label_and_no_row_leaves_a_party(method: str, tmp_path: Path) -> None:
    settings = config(rounds=2, method={"name": method}, evaluation={"every": 2})
    moved = watched(settings, tmp_path / "run")
    experiment = build(settings)
    secret = [experiment.clients[id].train["pixel_values"] for id in (0, 1)]
    allowed, tested = WIRE[method], {"embeddings": (int(experiment.partition["vertical"]["test"]), WIDTH)}
    ways = {"embed": (allowed["down"], allowed["up"]), "follow": (allowed["follow"], {}), "predict": ({}, tested)}
    assert {name for name, _, _ in moved} == set(ways)
    seen: dict[str, set[str]] = {"down": set(), "up": set()}
    for name, order, reply in moved:
        for way, message, shapes in (("down", order, ways[name][0]), ("up", reply, ways[name][1])):
            assert {tensor: tuple(value.shape) for tensor, value in message.params.items()}.items() <= shapes.items()
            assert all(not torch.equal(tensor, own) for tensor in message.params.values() for own in secret)
            seen[way] |= set(message.params) if name == "embed" else set()
        assert set(order.settings) <= {"rows", "shown", "clusters", "count"}
        assert not reply.metrics
        embedded = reply.params.get("embeddings")
        assert embedded is None or embedded.norm(dim=1).max() <= 1.001
    assert seen == {"down": set(allowed["down"]), "up": set(allowed["up"])}


def test_what_selection_keeps_is_told_by_class_and_is_in_the_record(tmp_path: Path) -> None:
    settings = config(method={"keep": 0.5, "keep_after": 1})
    moved = watched(settings, tmp_path / "run")
    told = [reply.params["kept"] for name, _, reply in moved if name == "embed"]
    assert all(shares.shape == (CLASSES,) for shares in told)
    lines = [line["state"]["kept"] for line in read_rounds(tmp_path / "run")]
    # "right" knows no labels, and does not learn from its rows
    assert [[*line] for line in lines] == [["left", "bottom"]] * 3
    assert {share for shares in lines[0].values() for share in shares} == {None, 1.0}
    for line in lines[1:]:
        assert [place for place, share in enumerate(line["left"]) if share is not None] == [0, 1, 2]
        assert all(0 < share <= 1 for share in line["left"][:3])
        assert min(line["left"][:3]) < 1
    run_again = read_run(tmp_path / "run")
    assert kept_of(run_again)["left"]["1"] == [line["left"][1] for line in lines]
    first, last = kept_rows({"all": [run_again]})
    assert (first["party"], last["party"]) == ("left", "bottom")
    assert first["least"][1] <= first["kept"] <= first["most"][1]
    assert "of class" in comparison({"all": [run_again]})


def test_with_noisy_numbers_of_rows_no_party_tells_what_it_keeps(tmp_path: Path) -> None:
    moved = watched(config(method={"keep": 0.5}, disclosure={"count_noise": 2.0}), tmp_path / "run")
    assert all((reply.params["kept"] == -1).all() for name, _, reply in moved if name == "embed")
    assert all([*line["state"]["kept"]] == ["bottom"] for line in read_rounds(tmp_path / "run"))


def test_a_class_of_few_labels_is_not_learned() -> None:
    experiment = build(config(method={"least": 0.2}, partition={"tail": 0.1}))
    embed = experiment.method.exchanges[0]
    orders = embed.ask(experiment.method.init(experiment.rng), Turn(0, experiment.federation.profiles, experiment.rng))
    reply, _ = embed.work(experiment.clients[0], replace(orders[0], rng=experiment.rng), {})
    counts = torch.bincount(experiment.clients[0].train["labels"], minlength=CLASSES)
    few = counts < 0.2 * counts.sum()
    assert (counts[few] > 0).any()
    assert reply.params["counts"].tolist() == counts.masked_fill(few, 0).tolist()


def test_self_supervision_reaches_every_encoder_and_adds_nothing_to_a_message(whole: Path, tmp_path: Path) -> None:
    assert ended(run(config(method={"self_supervised": 0.0}), tmp_path / "none")) == ended(whole)
    settings = config(method={"self_supervised": 1.0})
    moved, plain = watched(settings, tmp_path / "run"), watched(config(), tmp_path / "plain")
    for (_, order, reply), (_, before, answer) in zip(moved, plain, strict=True):
        assert {name: tensor.shape for name, tensor in (order.params | reply.params).items()} == {
            name: tensor.shape for name, tensor in (before.params | answer.params).items()
        }
    first = [reply.params["embeddings"] for name, _, reply in moved if name == "embed"][:2]
    without = [reply.params["embeddings"] for name, _, reply in plain if name == "embed"][:2]
    # "right" knows no labels of its own rows, and learns from them nevertheless
    assert all((own - other).abs().max() > 1e-3 for own, other in zip(first, without, strict=True))
    _, state, memories = Record.open(tmp_path / "run").load_checkpoint()
    assert all(
        {name.partition(".")[0] for name in own["extra"]} == {"views"} for own in (state["own"], *memories.values())
    )


def test_views_teach_a_party_without_labels_no_classes(tmp_path: Path) -> None:
    moved = watched(config(method={"self_supervised": 1.0, "keep": 0.5}), tmp_path / "run")
    assert [[*line["state"]["kept"]] for line in read_rounds(tmp_path / "run")] == [["left", "bottom"]] * 3
    told = [reply.params for name, _, reply in moved if name == "embed" and reply.client == 1]  # "right", see FILE
    assert len(told) == 3
    assert all((params["kept"] == -1).all() and (params["prior"] == 1 / CLASSES).all() for params in told)
    _, state, memories = Record.open(tmp_path / "run").load_checkpoint()
    steps = [own["moments"]["prototypes"]["step"] for own in (memories[0], memories[1], state["own"])]
    assert steps == [3 * (2 + 2), 3 * 2, 3 * (2 + 2)]  # in a round two on own rows, and two along gradients


@pytest.fixture
def attributes(tmp_path: Path) -> str:
    """A file of attributes of the digits."""
    lines = [f"{digit},{digit % 2},{digit % 3},{digit % 5}" for digit in range(CLASSES)]
    (tmp_path / "digits.csv").write_text("\n".join(["digit,a,b,c", *lines]) + "\n")
    return str(tmp_path / "digits.csv")


def test_prototypes_of_attributes_are_learned_at_every_party_and_sent_as_prototypes(
    attributes: str, tmp_path: Path
) -> None:
    settings = config(method={"attributes": attributes}, partition={"unseen": ["9"]})
    folder = run(settings, tmp_path / "run")
    _, state, memories = Record.open(folder).load_checkpoint()
    first = build(settings).method.init(build(settings).rng.child("init"))["own"]
    for own in (state["own"], *memories.values()):
        assert torch.equal(own["prototypes"], made_of(own["attributes"], own["extra"]))
        assert sum(name.startswith("semantic") for name in own["extra"]) == 4
    assert all(not torch.equal(state["own"]["extra"][name], first["extra"][name]) for name in first["extra"])
    told = state["told"]["0"]["prototypes"]
    assert told.shape == (CLASSES, WIDTH)
    # what follows gradients after the last message is learned too
    assert not torch.equal(told, memories[0]["prototypes"])
    assert torch.allclose(told, memories[0]["prototypes"], atol=0.2)
    assert read_rounds(folder)[-1]["evaluation"]["global"].keys() >= {"seen", "unseen", "harmonic"}


def test_attributes_that_do_not_fit_are_refused_before_anything_is_trained(attributes: str) -> None:
    (problem,) = check(config(method={"attributes": "none.csv"}))
    assert "method.attributes = 'none.csv': cannot be read" in problem
    (problem,) = check(config(method={"attributes": attributes, "offset": "auto"}))
    assert "method.offset = 'auto': takes a class from what the parties have learned" in problem


def test_a_party_is_asked_three_times_by_the_method_of_few_messages(tmp_path: Path) -> None:
    settings = config(rounds=4, method={"name": "vfl-few-shot", "minibatches": 2}, evaluation={"every": 4})
    lines = read_rounds(run(settings, tmp_path / "run"))
    names = [[one["exchange"] for one in line["exchanges"] if one["clients"]] for line in lines]
    assert names == [["embed", "follow"], ["embed"], [], ["predict"]]
    for client in ("0", "1"):
        messages = [one["clients"][client] for line in lines[:3] for one in line["exchanges"] if one["clients"]]
        told = ROWS * WIDTH + CLASSES * WIDTH + 2 * CLASSES
        assert [one["bytes_up"] for one in messages] == [4 * told, 0, 4 * told]
        assert [one["bytes_down"] for one in messages] == [0, 4 * ROWS * WIDTH, 0]


def test_a_party_that_was_away_shows_its_rows_later(tmp_path: Path) -> None:
    class Away(LocalEngine):
        def send(self, exchange: Any, orders: Any) -> Any:
            gone = {1} if any(order.round == 0 for order in orders.values()) else set()
            yield from super().send(exchange, {id: order for id, order in orders.items() if id not in gone})
            yield from (Failure(id, "away") for id in sorted(gone & orders.keys()))

    connect = EMBEDDED._replace(make=lambda experiment, key, memories, progress: Away(experiment.clients, memories))
    settings = config(rounds=4, method={"name": "vfl-few-shot", "minibatches": 2}, evaluation={"every": 4})
    folder = run(settings, tmp_path / "run", connect=connect)
    asked = [[sorted(one["clients"]) for one in line["exchanges"][:2]] for line in read_rounds(folder)]
    assert asked == [[["0"], ["0"]], [["0", "1"], ["1"]], [["1"], []], [[], []]]
    state = Record.open(folder).load_checkpoint()[1]
    assert state["learned"] == ["0", "1"]
    assert {id: tuple(part.shape) for id, part in state["shown"].items()} == {"0": (ROWS, WIDTH), "1": (ROWS, WIDTH)}


def test_one_round_is_too_few_for_three_messages() -> None:
    (problem,) = check(config(rounds=1, method={"name": "vfl-few-shot"}))
    assert "rounds = 1: method 'vfl-few-shot' asks for its last embeddings in the second round" in problem


def test_the_parties_learn_and_predict_together(whole: Path) -> None:
    last = read_rounds(whole)[-1]
    assert {"accuracy", "loss", "worst_class", "seen", "unseen", "harmonic"} == last["evaluation"]["global"].keys()
    assert last["state"]["gate"].keys() == {"left", "right", "bottom"}
    assert torch.tensor([*last["state"]["gate"].values()]).sum(0).allclose(torch.ones(10), atol=1e-5)
    assert {"without left", "without right"} <= last["state"].keys()
    alike = torch.tensor([*last["state"]["prototype_cosines"].values()])
    assert alike.shape == (10, 10)
    torch.testing.assert_close(alike, alike.T)
    assert alike.diagonal().max() <= 1.001
    assert read_rounds(whole)[0]["state"] == {}  # its test rows were not predicted
    assert (whole / "adapters" / "server" / "model.safetensors").is_file()
    assert (whole / "adapters" / "client-001" / "model.safetensors").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_goes_on_to_the_same_bits(method: str, tmp_path: Path) -> None:
    settings = config(rounds=2, method={"name": method})
    folder = run(settings, tmp_path / "run")
    again = shutil.copytree(folder, tmp_path / "again")
    resume(again, back_to=1)
    assert ended(folder) == ended(again)
    assert read_rounds(folder)[-1]["evaluation"]["global"]["accuracy"] > 0


def test_the_same_bits_over_flower(tmp_path: Path, whole: Path) -> None:
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    settings = config(network={"timeout": 5.0, "wait": 5.0})
    folder = tmp_path / "flower"
    grid = InProcessGrid(client_app(flower_site.joined(settings), folder / "sites"), 2)
    run(settings, folder, connect=flower.over(grid, settings, name="in-process", poll=0.05))
    assert ended(folder) == ended(whole)
    for line, other in zip(read_rounds(folder), read_rounds(whole), strict=True):
        assert line["evaluation"] == other["evaluation"]
    assert read_rounds(folder)[1]["messages"] == {
        "query.hello": 0,
        "train.embed": 2,
        "train.follow": 2,
        "train.predict": 2,
    }


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_published_methods_give_the_same_bits_over_flower(method: str, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    changes = {"rounds": 2, "method": {"name": method}, "network": {"timeout": 30.0, "wait": 5.0}}
    folder, embedded = tmp_path / "flower", run(config(**changes), tmp_path / "embedded")
    settings = config(**changes)
    grid = InProcessGrid(client_app(flower_site.joined(settings), folder / "sites"), 2)
    run(settings, folder, connect=flower.over(grid, settings, name="in-process", poll=0.05))
    assert ended(folder) == ended(embedded)


def test_a_party_whose_file_asks_for_other_noise_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    settings = config(network={"timeout": 5.0, "wait": 5.0})
    careful = config(disclosure={"embedding_noise": 0.5})
    grid = InProcessGrid(client_app(flower_site.joined(careful), tmp_path / "sites"), 2)
    with pytest.raises(ConfigError) as refused:
        run(settings, tmp_path / "run", connect=flower.over(grid, settings, name="in-process", poll=0.05))
    assert "refused before training: client 0: its run file differs in disclosure" in refused.value.problems


def test_proto_6_split_gradients_are_those_of_one_model() -> None:
    """With one minibatch and plain descent, a round moves every encoder as descent of the whole model does."""
    plain = {"optimizer": "sgd", "learning_rate": 0.1}
    settings = config(
        training=plain, method={"name": "vfl-split", "minibatches": 1, "dropout": 0.0}, adapter={"kind": "full"}
    )
    experiment = build(settings)
    method, vertical = experiment.method, experiment.federation.vertical
    assert vertical is not None
    state = method.init(experiment.rng.child("init"))
    engine = LocalEngine(experiment.clients)
    (done,) = _rounds(experiment, engine, state, 1)
    rows = done.state["rows"][0]
    parties = [*experiment.clients.values(), vertical.active]
    starts = [dict(party.initial) for party in parties[:-1]] + [state["own"]["params"]]
    joint = {name: tensor.clone().requires_grad_() for name, tensor in state["joint"].items()}
    leaves, views = [], []
    for party, start in zip(parties, starts, strict=True):
        own = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        batch = {"pixel_values": party.splits[ALIGNED]["pixel_values"][rows], "labels": torch.zeros(len(rows))}
        inputs = party.bench.prepare(batch)
        views.append(unit(torch.func.functional_call(party.bench.model.eval(), own, (), inputs).logits))
        leaves.append(own)
    logits = torch.cat(views, 1) @ joint["head.weight"].T + joint["head.bias"]
    functional.cross_entropy(logits, vertical.labels[rows]).backward()
    for id, own in enumerate(leaves[:-1]):
        after = engine.memories[id]["params"]
        for name, tensor in own.items():
            torch.testing.assert_close(after[name], tensor.detach() - 0.1 * _grad(tensor), atol=1e-6, rtol=0)
    for name, tensor in leaves[-1].items():
        torch.testing.assert_close(
            done.state["own"]["params"][name], tensor.detach() - 0.1 * _grad(tensor), atol=1e-6, rtol=0
        )
    for name, tensor in joint.items():
        torch.testing.assert_close(done.state["joint"][name], tensor.detach() - 0.1 * _grad(tensor), atol=1e-6, rtol=0)


def test_proto_evfl_with_the_head_alone_is_split_learning_to_the_bit(tmp_path: Path) -> None:
    bare = {"name": "proto-evfl", "local": False, "fused_weight": 0.0, "each_party": 0.0, "dropout": 0.0}
    left = run(config(rounds=2, method={**bare, "gate": False}), tmp_path / "left")
    right = run(config(rounds=2, method={"name": "vfl-split", "minibatches": 2}), tmp_path / "right")
    one, other = (Record.open(folder).load_checkpoint() for folder in (left, right))
    heads = ("head.weight", "head.bias")
    assert all(torch.equal(one[1]["joint"][name], other[1]["joint"][name]) for name in heads)
    for client in (0, 1):
        for name, tensor in other[2][client]["params"].items():
            assert torch.equal(one[2][client]["params"][name], tensor)


def test_a_party_that_is_away_is_left_out_and_comes_back(tmp_path: Path) -> None:
    class Away(LocalEngine):
        def send(self, exchange: Any, orders: Any) -> Any:
            gone = {1} if any(order.round == 1 for order in orders.values()) else set()
            yield from super().send(exchange, {id: order for id, order in orders.items() if id not in gone})
            yield from (Failure(id, "away") for id in sorted(gone & orders.keys()))

    connect = EMBEDDED._replace(make=lambda experiment, key, memories, progress: Away(experiment.clients, memories))
    lines = read_rounds(run(config(), tmp_path / "run", connect=connect))
    assert [[*one["dropped"]] for one in lines[1]["exchanges"]] == [["1"], [], ["1"]]
    assert {"without left"} == {name for name in lines[1]["state"] if name.startswith("without")}
    assert not lines[2]["exchanges"][0]["dropped"]
    assert torch.tensor(lines[1]["state"]["gate"]["right"]).abs().max() == 0


def test_checks_of_methods_read_the_rows_once() -> None:
    known: dict[Any, Any] = {}
    assert check(config(), known) == check(config(method={"name": "vfl-split"}), known) == []
    once = len(known)
    assert once > 0
    check(config(data={"limit": 300}), known)
    assert len(known) > once


def test_a_check_finds_what_is_wrong(tmp_path: Path) -> None:
    assert check(config()) == []
    (problem,) = check(config(method={"name": "vfl-split", "hidden": 4}))
    assert "method.hidden" in problem
    (problem,) = check(config(partition={"aligned_classes": ["11"]}))
    assert "partition.aligned_classes: the data has no class '11'" in problem
    (problem,) = check(config(partition={"aligned": 4000}))
    assert "partition.aligned = 4000" in problem
    for changes, words in (
        ({"training": {"proximal": 0.1}}, "training.proximal = 0.1: parties share no tensors"),
        ({"privacy": {"mode": "central"}}, "privacy.mode = 'central'"),
        ({"partition": {"scheme": "iid", "aligned": None}}, "parties: are of partition.scheme = 'vertical'"),
    ):
        raw = tomllib.loads(FILE)
        for section, keys in changes.items():
            raw[section] = {**raw.get(section, {}), **keys}
        raw["partition"] = {key: value for key, value in raw["partition"].items() if value is not None}
        with pytest.raises(ConfigError) as refused:
            parse(raw)
        assert any(words in problem for problem in refused.value.problems), refused.value.problems
    plain = tomllib.loads(FILE) | {"method": {"name": "fedit"}}
    (problem,) = check(parse(plain))
    assert "with method.name = 'fedit' all clients have the same columns; take one of" in problem


def _grad(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _rounds(experiment: Any, engine: LocalEngine, state: Any, count: int) -> Any:
    profiles = experiment.federation.profiles
    return rounds(
        experiment.method, lambda number: profiles, engine.send, experiment.rng, num_rounds=count, state=state
    )


def test_an_order_for_rows_that_are_not_there_is_refused() -> None:
    experiment = build(config())
    embed = experiment.method.exchanges[0]
    order = Order({"prior": torch.full((10,), 0.1)}, {"rows": [24]})
    with pytest.raises(Exception, match="names aligned rows that this party has not: it has 24"):
        embed.work(experiment.clients[0], order, {})


def test_the_encoder_of_each_party_is_exported(whole: Path, tmp_path: Path) -> None:
    wanted = {"right": {"client": 1}, "bottom": {"server": True}}
    for label, other in wanted.items():
        by_label = export(whole, tmp_path / label, group=label)
        by_number = export(whole, tmp_path / f"{label} again", **other)
        assert (by_label / "model.safetensors").read_bytes() == (by_number / "model.safetensors").read_bytes()
    for wrong in ({}, {"group": "middle"}, {"group": "left", "server": True}):
        with pytest.raises(RunError, match="give --group with one of left, right, bottom"):
            export(whole, tmp_path / "wrong", **wrong)


# Parties with files of their own ---------------------------------------------------------------------------------

COMMON = 40


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the files of three parties."""
    return write_files(tmp_path)


def test_rows_that_a_party_lacks_are_relayed_as_zeros_whatever_it_sent(files: Path) -> None:
    """Noise that stands in place of a row that a party does not hold is not passed on as its embedding."""
    experiment = build(of_files(files, "vfl-hssl", disclosure={"embedding_noise": 0.5}))
    engine = LocalEngine(experiment.clients)
    (first,) = _rounds(experiment, engine, experiment.method.init(experiment.rng.child("init")), 1)
    vertical, lacks = experiment.federation.vertical, torch.arange(COMMON) % 3 == 0
    assert vertical is not None
    assert vertical.halves is not None
    first.state["alignment"]["holds"]["1"] = ~lacks
    embed = next(one for one in experiment.method.exchanges if one.name == "embed")
    orders = embed.ask(first.state, Turn(1, experiment.federation.profiles, experiment.rng))
    orders = {id: replace(order, round=1, rng=experiment.rng) for id, order in orders.items()}
    relay = embed.merge(first.state, [*engine.send(embed, orders)])["relay"]
    gone = lacks[vertical.halves(COMMON)[0]][relay["rows"]]
    assert 0 < int(gone.sum()) < len(gone)
    assert torch.equal((relay["embeddings"][:, 1] == 0).all(1), gone)
    assert not (relay["embeddings"][:, 0] == 0).all(1).any()


@pytest.mark.parametrize("method", ["proto-evfl", "vfl-split", "vfl-ensemble", *PUBLISHED])
def test_parties_with_files_align_their_rows_and_learn(files: Path, method: str) -> None:
    folder = run(of_files(files, method), files / "run")
    _, state, memories = Record.open(folder).load_checkpoint()
    lines = {name: (files / f"{name}.csv").read_text().splitlines()[1:] for name in ("shop", "insurer", "bank")}
    ids = [
        [lines[name][row].split(",")[0] for row in rows.tolist()]
        for name, rows in (
            ("bank", state["alignment"]["rows"]),
            ("shop", memories[0]["aligned"]),
            ("insurer", memories[1]["aligned"]),
        )
    ]
    assert ids[0] == ids[1] == ids[2]
    assert sorted(ids[0]) == [f"C{row:04d}" for row in range(60, 100)]
    last = read_rounds(folder)[-1]
    assert last["evaluation"]["global"]["accuracy"] > 0.4
    assert last["exchanges"][-1]["clients"]["0"]["bytes_up"] == 4 * 4 * round(0.2 * COMMON)


def test_files_stay_with_their_parties_over_flower(files: Path) -> None:
    pytest.importorskip("flwr")
    from in_process_grid import InProcessGrid

    from fedquilt.engine.flower.client import client_app
    from fedquilt.experiment import flower, flower_site

    settings = of_files(files, network={"timeout": 5.0, "wait": 5.0})
    whole = run(settings, files / "embedded")
    apart = {name: (files / f"{name}.csv").rename(files / f"of-{name}.csv") for name in ("shop", "insurer")}
    folder, join = files / "flower", flower_site.joined(settings)
    grid = InProcessGrid(
        client_app(lambda id, node: join(id, {**node, "data": str([*apart.values()][id])}), folder / "sites"), 2
    )
    run(settings, folder, connect=flower.over(grid, settings, name="in-process", poll=0.05))
    assert ended(folder) == ended(whole)
    for line, other in zip(read_rounds(folder), read_rounds(whole), strict=True):
        assert line["evaluation"] == other["evaluation"]


@pytest.mark.parametrize("disclosure", [{}, {"embedding_noise": 0.5}])
def test_rows_of_files_are_predicted_as_they_were_evaluated(files: Path, disclosure: dict[str, float]) -> None:
    """Also with noise, which is the same for the same rows; a query is answered with it."""
    folder = run(of_files(files, disclosure=disclosure), files / "run")
    vertical = build(of_files(files)).federation.vertical
    assert vertical is not None
    assert vertical.halves is not None
    _, state, memories = Record.open(folder).load_checkpoint()
    shown = vertical.halves(len(state["alignment"]["rows"]))[1]
    given, labels = [], []
    for name, rows in (
        ("shop", memories[0]["aligned"]),
        ("insurer", memories[1]["aligned"]),
        ("bank", state["alignment"]["rows"]),
    ):
        head, *lines = (files / f"{name}.csv").read_text().splitlines()
        chosen = [lines[row] for row in rows[shown].tolist()]
        (files / f"new-{name}.csv").write_text("\n".join([head, *chosen]) + "\n")
        given.append(f"{name}={files / f'new-{name}.csv'}")
        labels = [line.split(",")[-1] for line in chosen]
    found = predicted_together(folder, parse(read_config(folder)), given, ())
    assert found.probabilities is not None
    answers = [found.classes[place] for place in found.probabilities.argmax(1).tolist()]
    right = sum(one == other for one, other in zip(answers, labels, strict=True)) / len(labels)
    assert right == pytest.approx(read_rounds(folder)[-1]["evaluation"]["global"]["accuracy"])
    exact = predicted_together(folder, of_files(files), given, ()).probabilities
    assert exact is not None
    assert torch.equal(torch.as_tensor(exact), torch.as_tensor(found.probabilities)) == (not disclosure)


def test_files_that_do_not_fit_are_refused(files: Path) -> None:
    (problem,) = check(of_files(files, "vfl-central"))
    assert "partition.id = 'customer': method.name = 'vfl-central' needs all columns in one place" in problem
    raw = tomllib.loads(FILES.replace("FOLDER", str(files)).replace("METHOD", "proto-evfl"))
    raw["data"] = {"source": f"{files}/bank.csv"}
    problems = check(parse(raw))
    assert [problem.split(":")[0] for problem in problems] == [f"data.source = '{files}/bank.csv'", "data.classes"]
    raw = tomllib.loads(FILES.replace("FOLDER", str(files)).replace("METHOD", "proto-evfl"))
    raw["partition"] |= {"tail": 0.1}
    assert any("partition.tail" in problem for problem in check(parse(raw)))
    raw = tomllib.loads(FILES.replace("FOLDER", str(files)).replace("METHOD", "proto-evfl"))
    raw["parties"] = [{"label": "bank"}, {"label": "shop"}]
    (problem,) = check(parse(raw))
    assert problem.startswith("party 'shop': its file has no column 'label', and the active party knows the labels")
