import importlib

import numpy as np
import pytest

from fedquilt.core.errors import ConfigError, DataError, ModelError
from fedquilt.core.method import Wire
from fedquilt.core.rng import Rng
from fedquilt.core.types import Order, Turn
from fedquilt.experiment.build import build, device_of
from fedquilt.experiment.check import check

models_module = importlib.import_module("fedquilt.experiment.models")
build_module = importlib.import_module("fedquilt.experiment.build")


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights fails the test; shapes on meta may be made."""

    def shapes_only(*words, meta=False, real=models_module.load_model, **named):
        assert meta, "a model was loaded with its weights"
        return real(*words, meta=True, **named)

    monkeypatch.setattr(models_module, "load_model", shapes_only)


def write(path, **columns):
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join(["\t".join(names), *("\t".join(map(str, row)) for row in rows)]) + "\n")


WRONG = [
    (
        ("method.name=fed-hullo",),
        r"method.name = 'fed-hullo': unknown method \(did you mean 'fed-hello'\?\); allowed: ",
    ),
    (("method.shape=tri",), r"method.shape = 'tri': not one of the choices; allowed: 'triangle', 'inverted-triangle'"),
    (("method.drop_layers=true",), r"method.drop_layers = true: unknown key; allowed: allocation, shape, base"),
    (("method.warmup=2.5",), r"method.warmup = 2.5: must be a whole number, not a number with a decimal point"),
    (("method.allocation=fim", "method.refresh=0"), r"method.refresh = 0: must be at least 1"),
    (
        ("method.allocation=fim", "method.scores_from=server", "data.proxy=0"),
        r"method.scores_from = 'server', but the server has no rows of its own: ",
    ),
    (("method.name=exclusive", "clients.budgets=[1,2,2]"), r"'exclusive' needs a client that affords all 3 layers"),
    (("clients.budgets=[1,2,4]",), r"clients.budgets\[2\] is 4; the model has 3 blocks, .* from 1 to 3"),
    (("clients.shares=1-1-9",), r"clients.shares puts 0, 0, 6 of partition.num_clients = 6 clients into its 3 groups"),
    (("partition.classes_per_client=11",), r"partition.classes_per_client = 11: the data has 10 classes; set it to 10"),
    (("partition.classes_per_client=true",), r"partition.classes_per_client = True: must be a whole number, 1 or more"),
    (
        ("partition.alpha=1.0",),
        r"partition.alpha: scheme 'pathological' has no such setting; allowed: classes_per_clie",
    ),
    (
        ("partition.scheme=pathologicl",),
        r"partition.scheme = 'pathologicl': no such scheme \(did you mean 'pathologica",
    ),
    (("partition.scheme=natural",), r"partition.scheme = 'natural': the data has no client id column; set data.group"),
    (
        ("partition.scheme=dirichlet", "partition.alpha=0.01", "partition.min_size=0", "partition.num_clients=20"),
        r"partition.scheme = 'dirichlet': client \d+ of 20 has no examples; set partition.min_size to 1 or more",
    ),
    (
        ("partition.num_clients=300", "partition.scheme=iid"),
        r"num_clients = 300: the data has 240 examples, fewer than",
    ),
    (("data.source=nope.tsv",), r"data.source = 'nope.tsv': there is no file or folder .*nope.tsv"),
    (("data.source=sklearn:iris",), r"'sklearn:iris': .*; rows of numbers and categories need model.task = 'tabular"),
    (("data.proxy=500",), r"data.proxy = 500"),
    (("adapter.targets=['nope']",), r"adapter.targets holds 'nope', which names no linear module .* attention.q_proj"),
    (("device=cuda:7",), r"device = 'cuda:7': not on this machine; allowed here: auto, "),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_is_wrong_is_told_before_weights_are_loaded(config, no_weights, changes, message):
    wanted = config(*changes)
    with pytest.raises((ConfigError, DataError, ModelError), match=message) as caught:
        build(wanted)
    assert str(caught.value) in "\n".join(check(wanted))


def test_check_finds_nothing_wrong_where_nothing_is_and_loads_no_weights(config, no_weights):
    assert check(config()) == []
    assert check(config("method.allocation=fim", "head.policy=local")) == []


def test_check_tells_every_mistake_at_once(config, no_weights):
    changes = (
        "method.allocation=fim",
        "data.proxy=0",
        "clients.budgets=[1,5,9]",
        "device=mps",
        "adapter.targets=['x']",
    )
    problems = "\n".join(check(config(*changes, "partition.classes_per_client=11")))
    for word in (
        "classes_per_client = 11",
        "budgets[1] is 5",
        "budgets[2] is 9",
        "device = 'mps'",
        "targets holds 'x'",
    ):
        assert word in problems
    problems = check(
        config("method.name=nope", "data.source=nope.tsv", "partition.scheme=nope", "model.name=tiny:nope")
    )
    assert [problem.partition("'")[0] for problem in problems] == [
        *("method.name = ", "partition.scheme = ", "data.source = ", "there is no tiny architecture ")
    ]


def test_check_reads_the_same_data_once(config, monkeypatch):
    reads = []

    def counted(*words, real=build_module.read):
        reads.append(words)
        return real(*words)

    monkeypatch.setattr(build_module, "read", counted)
    tables = {}
    for method in ("fed-hello", "fedit", "full"):
        assert check(config(f"method.name={method}"), tables) == []
    assert len(reads) == 1


def test_data_of_the_wrong_kind_is_refused_with_the_task_that_fits(config, tmp_path, no_weights):
    write(tmp_path / "said.tsv", text=["a", "b"] * 20, label=["x", "y"] * 20)
    with pytest.raises(
        ConfigError, match=r"said.tsv': holds text, and model.task = 'image-classification' needs images"
    ):
        build(config("data.source=./said.tsv"))
    with pytest.raises(
        ConfigError, match=r"holds images, and model.task = 'causal-lm' needs text; set model.task to 'im"
    ):
        build(config("model.task=causal-lm", "model.name=tiny:llama"))


def test_a_classifier_needs_labels(config, tmp_path, no_weights):
    np.savez(tmp_path / "bare.npz", images=np.zeros((50, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"bare.npz': has no labels, which this task needs; set data.label .*images"):
        build(config("data.source=./bare.npz"))
    write(tmp_path / "said.tsv", text=["a"] * 40, mood=["x", "y"] * 20)
    text = ("model.name=tiny:bert", "model.task=sequence-classification", "clients.budgets=[1,1,2]")
    with pytest.raises(DataError, match=r"data.label = 'mod'.* \(did you mean 'mood'\?\); columns: text, mood"):
        build(config("data.source=./said.tsv", "data.label=mod", *text))


def test_a_separate_test_set_is_scored_and_must_have_the_same_classes(config, tmp_path):
    text = ("model.name=tiny:bert", "model.task=sequence-classification", "clients.budgets=[1,1,2]")
    write(tmp_path / "train.tsv", text=["a", "b"] * 40, label=["x", "y"] * 40)
    write(tmp_path / "test.tsv", text=["b", "c"] * 5, label=["y", "y"] * 5)
    wanted = config("data.source=./train.tsv", "data.test=./test.tsv", "data.limit=80", *text)
    experiment = build(wanted)
    held = experiment.server.splits["test"]
    assert held["labels"].tolist() == [1] * 10
    assert all(len(client.splits["test"]["labels"]) != 10 for client in experiment.clients.values())
    # clients without test rows of their own are tested on it
    bare = build(
        config("data.source=./train.tsv", "data.test=./test.tsv", "data.limit=80", "partition.test_fraction=0", *text)
    )
    assert all(client.splits["test"]["labels"].tolist() == [1] * 10 for client in bare.clients.values())
    assert sum(len(client.train["labels"]) for client in bare.clients.values()) == 60  # the server has 20
    fewer = config("data.source=./train.tsv", "data.test=./test.tsv", "data.test_limit=4", "evaluation.limit=3", *text)
    assert len(build(fewer).server.splits["test"]["labels"]) == 3
    write(tmp_path / "test.tsv", text=["b", "c"] * 5, label=["y", "z"] * 5)
    with pytest.raises(DataError, match=r"has classes that the training data does not have \('z'\)"):
        build(wanted)


def test_clients_get_budgets_by_group_and_rows_by_partition(config):
    experiment = build(config("clients.shares=2-1", "clients.budgets=[1,3]"))
    assert [client.profile.budget.layers for client in experiment.clients.values()] == [1, 1, 1, 1, 3, 3]
    assert [profile.id for profile in experiment.federation.profiles] == [*experiment.clients] == [*range(6)]
    for client in experiment.clients.values():
        assert client.profile.num_examples == len(client.train["labels"])
        assert len(client.train["labels"].unique()) <= 2
        assert client.bench is experiment.clients[0].bench  # one frozen base for all
    assert len(experiment.federation.proxy.train["labels"]) == 20


def test_what_the_method_does_not_change_does_not_depend_on_the_method(config):
    first, second = build(config()), build(config("method.name=fedra", "adapter.rank=4"))
    assert first.partition == second.partition
    assert first.loaded.digest == second.loaded.digest
    assert build(config("seed=4")).partition["digest"] != first.partition["digest"]


def test_a_round_without_test_rows_has_nobody_to_judge(config):
    experiment = build(config("partition.test_fraction=0"))
    assert experiment.server.evaluate(Order({})) == {}
    assert all(
        client.evaluate(experiment.method.view(*_state(experiment))) == {} for client in experiment.clients.values()
    )


def _state(experiment):
    return experiment.method.init(Rng(0)), experiment.federation.profiles[0]


def test_the_local_head_is_in_no_message(config):
    experiment = build(config("head.policy=local"))
    state = experiment.method.init(experiment.rng.child("init"))
    turn = Turn(0, experiment.federation.profiles, experiment.rng.child("round", 0))
    orders = experiment.method.exchanges[0].ask(state, turn)
    reply, memory = experiment.method.exchanges[0].work(experiment.clients[0], orders[0], {})
    head = experiment.layout.head
    assert head == {"classifier.weight", "classifier.bias"}
    assert head.isdisjoint(orders[0].params)
    assert head.isdisjoint(reply.params)
    assert memory["params"].keys() == head


def test_auto_takes_a_device_that_is_there():
    assert device_of("cpu").type == "cpu"
    assert device_of(str(device_of("auto"))) == device_of("auto")


@pytest.mark.parametrize("changes", [(), ("head.policy=local",), ("evaluation.clients=received",)])
def test_the_run_file_says_what_tensors_travel_as(config, changes):
    assert [exchange.wire for exchange in build(config(*changes)).method.exchanges] == [None]
    for dtype in ("bfloat16", "int8"):
        experiment = build(config(*changes, f"network.dtype={dtype}"))
        assert [exchange.wire for exchange in experiment.method.exchanges] == [Wire(dtype)]
    with pytest.raises(ConfigError, match=r"network\.dtype"):
        config("network.dtype=float16")
