"""Runs in which the weights themselves are trained (``adapter.kind = "full"``)."""

import re
from dataclasses import replace

import pytest
import torch
import transformers

from fedquilt import load_adapter
from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError, ModelError, RunError
from fedquilt.core.types import Turn
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.export import export
from fedquilt.experiment.plan import plan
from fedquilt.experiment.run import resume, run
from fedquilt.models.hf import load_model
from fedquilt.models.weights_digest import digest
from fedquilt.record import Record, read_rounds

TWO = """
seed = 3
rounds = 2
device = "cpu"
threads = 1

[model]
name = "glyph-vit-4x32?layers=2"
task = "image-classification"

[data]
source = "sklearn:digits"
limit = 160

[partition]
scheme = "iid"
num_clients = 4

[adapter]
kind = "full"

[training]
steps = 2
batch_size = 8
learning_rate = 0.001

[method]
name = "fedit"

[[groups]]
label = "cut"
budget = 2

[[groups]]
label = "words"
budget = 2
model = {name = "tiny:bert?layers=2&width=16", task = "sequence-classification", max_length = 12}
data = {source = "./words.tsv"}
partition = {test_fraction = 0.25}
"""


@pytest.fixture
def two(tmp_path, words):
    """``two(changes)``: the config of two groups of unlike models and data, all weights trained."""
    (tmp_path / "two.toml").write_text(TWO, encoding="utf-8")
    return lambda *changes: load(tmp_path / "two.toml", changes)[0]


def ordered(experiment):
    """The only exchange, and everybody's order in the first round."""
    (fit,) = experiment.method.exchanges
    state = experiment.method.init(experiment.rng.child("init"))
    return fit, fit.ask(state, Turn(0, experiment.federation.profiles, experiment.rng.child("round", 0)))


def test_a_client_trains_as_a_bare_loop_over_the_whole_model_does(two):
    experiment = build(
        two("training.optimizer=sgd", "training.momentum=0", "training.steps=3", "training.batch_size=64")
    )
    client = experiment.clients[0]
    fit, orders = ordered(experiment)
    reply, memory = fit.work(client, orders[0], {})
    assert memory == {}
    bare = load_model(
        "glyph-vit-4x32?layers=2", "image-classification", num_classes=10, rng=experiment.rng.child("model")
    )
    model = bare.model.train().requires_grad_(True)
    assert len(client.train["labels"]) <= 64, "so that every step sees all rows, in whatever order"
    optimizer = torch.optim.SGD(model.parameters(), lr=client.training.learning_rate)
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(**bare.prepare(client.train)).logits, client.train["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = dict(model.named_parameters())
    assert reply.params.keys() == moved.keys()
    for name, value in reply.params.items():
        torch.testing.assert_close(value, moved[name].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("bytes_alone")
def test_what_travels_is_the_whole_model_both_ways(two, tmp_path):
    for one in plan(two()):
        assert one.saving == 0
        assert one.bytes_down == one.bytes_up == one.model_bytes == 4 * one.trained_parameters
    planned = {str(one.client): (one.bytes_down, one.bytes_up) for one in plan(two("rounds=1"))}
    moved = read_rounds(run(two("rounds=1"), tmp_path / "run"))[0]["exchanges"][0]["clients"]
    assert {id: (one["bytes_down"], one["bytes_up"]) for id, one in moved.items()} == planned


def test_few_blocks_are_trained_with_what_stands_beside_them(two):
    plans = plan(two("method.name=straggler", "rounds=1"))
    assert plans[0].trained_parameters == plans[0].model_bytes // 4
    experiment = build(two("method.name=fed-hello", "method.allocation=gd"))
    group = experiment.groups[0]
    assert not any("embeddings" in name for name in group.layout.names([1]))
    assert any(name.startswith("vit.layernorm") for name in group.layout.names([1]))


@pytest.mark.parametrize("policy", ["local", "frozen"])
def test_heads_stay_as_the_policy_says(two, policy):
    experiment = build(two(f"head.policy={policy}"))
    fit, orders = ordered(experiment)
    for id in (0, 3):
        head = {*experiment.group_of(id).loaded.head}
        reply, memory = fit.work(experiment.clients[id], orders[id], {})
        assert head
        assert head.isdisjoint(reply.params)
        assert head.isdisjoint(experiment.federation.layouts[experiment.clients[id].profile.architecture].depth) == (
            policy == "frozen"
        )
        assert (memory.get("params", {}).keys() == head) == (policy == "local")


def test_a_base_that_others_keep_frozen_is_not_the_one_that_is_trained(two, tmp_path):
    """One model for both groups: one trains it, the other has adapters on it as it was."""
    text = TWO.split('model = {name = "tiny')[0]
    (tmp_path / "same.toml").write_text(text + 'adapter = {kind = "lora", rank = 2}\n', encoding="utf-8")
    experiment = build(load(tmp_path / "same.toml")[0])
    full, lora = experiment.groups
    assert (full.put.settings, lora.put.settings.rank) == (None, 2)
    base = {name: value.detach().clone() for name, value in lora.loaded.model.named_parameters() if "lora" not in name}
    fit, orders = ordered(experiment)
    before = digest(full.loaded.model)
    fit.work(experiment.clients[0], replace(orders[0]), {})
    assert digest(full.loaded.model) != before
    now = dict(lora.loaded.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in base.items())


def test_a_run_that_was_stopped_ends_in_the_same_bits(two, tmp_path, fingerprint, copying):
    whole = run(two("network.dtype=int8"), tmp_path / "whole", copying(tmp_path / "whole", tmp_path / "cut"))
    resume(tmp_path / "cut")
    assert fingerprint(tmp_path / "cut") == fingerprint(whole)


def test_what_is_exported_is_a_model_that_transformers_loads_and_scores_as_the_run_did(two, tmp_path):
    wanted = two()
    folder = run(wanted, tmp_path / "run")
    experiment = build(wanted)
    _, state, _ = Record.open(folder).load_checkpoint()
    for group, auto in zip(
        experiment.groups,
        (transformers.AutoModelForImageClassification, transformers.AutoModelForSequenceClassification),
        strict=True,
    ):
        out = export(folder, tmp_path / group.label, group=group.label)
        model = auto.from_pretrained(out).eval()
        group.bench.load(group.server.params(experiment.method.view(state, group.server.profile)))
        columns = {name: column[:6] for name, column in group.server.splits["test"].items()}
        inputs = group.loaded.prepare(columns)
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, group.bench.model(**inputs).logits)
        with pytest.raises(ModelError, match="holds a whole model and no adapter; load it with from_pretrained"):
            load_adapter(model, out)
    with pytest.raises(RunError, match="this folder is not empty and holds no adapter"):
        export(folder, tmp_path / "cut", group="cut")  # it might be somebody's base
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "words")
    assert tokenizer("good thing")["input_ids"]
    # and fedquilt takes it as a base
    again = load_model(str(tmp_path / "cut"), "image-classification", num_classes=10, rng=experiment.rng.child("model"))
    assert not again.fresh_head


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ("method.name=heterotune",),
            r"'full': method.name = 'heterotune' needs mixtures of adapters, and",
        ),
        (
            ("method.name=flora",),
            r"'full': method.name = 'flora' needs LoRA factors, and this kind has",
        ),
        (("method.name=h2tune",), r"adapter.kind = 'full': method.name = 'h2tune' needs LoRA factors"),
        (("aggregation.rule=flexlora",), r"aggregation.rule = 'flexlora': combines LoRA factors, and adapter.kind"),
        (
            ("method.name=fed-hello", "data.proxy=5"),
            r"'fim' needs LoRA .*, or set method.allocation = 'gd' or 'rgd'",
        ),
        (
            ("adapter.rank=4",),
            r"rank is of kind = 'lora' or 'mixture' or 'common' or 'anchored' alone, and this is 'full'; leave it out",
        ),
    ],
)
def test_what_needs_adapters_is_refused_before_weights_load(two, changes, told):
    try:
        problems = check(two(*changes))
    except ConfigError as error:  # what the file alone shows
        problems = error.problems
    assert any(re.search(told, problem) for problem in problems), problems


def test_a_rank_without_adapters_is_refused(tmp_path):
    text = TWO.split("[[groups]]")[0] + '[clients]\nshares = "1"\nbudgets = [2]\nranks = [4]\n'
    (tmp_path / "ranks.toml").write_text(text, encoding="utf-8")
    (problem,) = check(load(tmp_path / "ranks.toml")[0])
    assert problem == (
        "clients.ranks holds 4 and adapter.kind = 'full' has no adapters that could have a rank; leave clients.ranks "
        "out"
    )
