"""Runs in which mixtures of adapters are trained: HeteroTune across sizes and tasks, and its controls."""

import json
import re
from dataclasses import asdict

import pytest
import torch

from fedquilt import load_adapter
from fedquilt.adapters.mixture.settings import MixtureSettings
from fedquilt.config.load import load
from fedquilt.core.errors import ConfigError, RoundError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Turn
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.export import export
from fedquilt.experiment.plan import plan
from fedquilt.experiment.run import resume, run
from fedquilt.models.hf import load_model
from fedquilt.record import Record, read_environment, read_partition, read_rounds
from fedquilt.report.conflicts import alignments
from fedquilt.report.runs import read_run

SIZES = """
seed = 3
rounds = 2
device = "cpu"
threads = 1

[model]
name = "tiny:vit?layers=3&width=16&image=8&patch=4"
task = "image-classification"

[data]
source = "sklearn:digits"
limit = 160

[partition]
scheme = "iid"
num_clients = 6

[adapter]
kind = "mixture"
rank = 4
alpha = 4

[training]
steps = 2
batch_size = 8
learning_rate = 0.01

[method]
name = "heterotune"

[[groups]]
label = "small"
budget = 2

[[groups]]
label = "wide"
budget = 4
model = {name = "tiny:vit?layers=4&width=24&image=8&patch=4", task = "image-classification"}
"""
WORDS = """
[[groups]]
label = "words"
budget = 2
model = {name = "tiny:bert?layers=2&width=16", task = "sequence-classification", max_length = 12}
data = {source = "./words.tsv"}
partition = {test_fraction = 0.25}
"""
CONTROLS = ["fedit", "local-only", "full", "fedra", "straggler", "fed-hello"]
OWN = {"fedra": ("method.drop_layers=false",), "fed-hello": ("method.allocation=rgd",)}


@pytest.fixture
def sizes(tmp_path, words):
    """``sizes(changes)``: the config of two sizes of ViT and, with ``words``, a BERT with a task of its own."""

    def made(*changes, words=False):
        (tmp_path / "sizes.toml").write_text(SIZES + (WORDS if words else ""), encoding="utf-8")
        return load(tmp_path / "sizes.toml", changes)[0]

    return made


def test_branches_and_slots_come_of_the_federation_unless_the_file_says_other(sizes):
    groups = build(sizes(words=True)).groups
    assert [type(group.put.settings) for group in groups] == [MixtureSettings] * 3
    assert {(group.put.settings.branches, group.put.settings.num_slots) for group in groups} == {(3, 2)}
    told = build(sizes("adapter.branches=5", "adapter.num_slots=1")).groups
    assert {(group.put.settings.branches, group.put.settings.num_slots) for group in told} == {(5, 1)}


def test_all_architectures_begin_with_the_same_branches_and_clients_with_what_the_server_has(sizes):
    experiment = build(sizes(words=True))
    state = experiment.method.init(experiment.rng.child("init"))
    for client in experiment.clients.values():
        order = experiment.method.view(state, client.profile)
        assert order.params.keys() == client.initial.keys()
        assert all(torch.equal(order.params[name], value) for name, value in client.initial.items())


@pytest.mark.parametrize("trained", ["own", "all"])
def test_a_run_across_sizes_and_tasks_records_scores_conflicts_and_adapters(sizes, tmp_path, trained):
    folder = run(sizes(f"adapter.trained={trained}", words=True), tmp_path / "run")
    assert "apart" not in read_environment(folder), "it is one method for all architectures"
    for line in read_rounds(folder):
        assert line["evaluation"]["groups"].keys() == {"small", "wide", "words"}
        assert (line["state"] != {}) == (trained == "all")
    assert {path.name for path in (folder / "adapters").iterdir()} == {"global-small", "global-wide", "global-words"}
    found = alignments(read_run(folder))
    if trained == "own":
        assert not found
        return
    (one,) = found.values()
    assert one.rounds == [0, 1]
    assert list(one.names) == sorted(group["architecture"] for group in read_partition(folder)["groups"])
    assert one.cosines.shape == (3, 3)
    assert one.conflicts.shape == (2,)


@pytest.mark.parametrize("training", [("training.steps=3",), ("training.epochs=2",)])
def test_the_server_knows_how_many_steps_a_client_makes(sizes, tmp_path, training):
    """So that nobody has to be asked, see ``with_alignment``."""
    wanted = sizes("rounds=1", "training.batch_size=5", *training, words=True)
    federation = build(wanted).federation
    told = read_rounds(run(wanted, tmp_path / "run"))[0]["exchanges"][0]["clients"]
    assert len(told) == 6
    for profile in federation.profiles:
        assert told[str(profile.id)]["metrics"]["steps"] == federation.local_steps(profile)


@pytest.mark.parametrize("change", ["adapter.trained=own", "method.equalise=true", "network.dtype=int8"])
def test_a_run_that_was_stopped_ends_in_the_same_bits(sizes, tmp_path, fingerprint, change, copying):
    whole = run(sizes(change), tmp_path / "whole", copying(tmp_path / "whole", tmp_path / "cut"))
    resume(tmp_path / "cut")
    assert fingerprint(tmp_path / "cut") == fingerprint(whole)
    assert read_rounds(whole)[-1]["state"] == read_rounds(tmp_path / "cut")[-1]["state"]


@pytest.mark.usefixtures("bytes_alone")
@pytest.mark.parametrize("method", CONTROLS)
@pytest.mark.parametrize("trained", ["own", "all"])
def test_methods_that_take_means_train_the_same_adapters_in_each_architecture_apart(sizes, tmp_path, method, trained):
    wanted = sizes(f"method.name={method}", f"adapter.trained={trained}", "rounds=1", *OWN.get(method, ()))
    assert check(wanted) == []
    folder = run(wanted, tmp_path / "run")
    sent = read_rounds(folder)[0]["exchanges"][0]["clients"]
    planned = {str(one.client): (one.bytes_down, one.bytes_up) for one in plan(wanted)}
    assert sent
    assert {id: (moved["bytes_down"], moved["bytes_up"]) for id, moved in sent.items()} == {
        id: planned[id] for id in sent
    }


def test_in_the_first_form_a_control_trains_its_architectures_branch_alone(sizes):
    experiment = build(sizes("method.name=fedit", "adapter.trained=own"))
    assert {len(names) for names in experiment.federation.frozen.values()} == {6}  # slots and parts of the other
    client = experiment.clients[5]
    (fit,) = experiment.method.exchanges
    orders = fit.ask(experiment.method.init(experiment.rng), Turn(0, experiment.federation.profiles, Rng(0)))
    reply, _ = fit.work(client, orders[5], {})
    assert {name.rpartition(".")[2] for name in reply.params if name.startswith("mixture.")} == {"1"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("adapter.kind=lora",), r"adapter.kind = 'lora': method.name = 'heterotune' needs mixtures of adapters"),
        (("method.name=flora",), r"adapter.kind = 'mixture': method.name = 'flora' needs LoRA factors, and"),
        (("method.name=fedsa-lora",), r"method.name = 'fedsa-lora' needs LoRA factors"),
        (("method.name=fedit", "aggregation.rule=flexlora"), r"aggregation.rule = 'flexlora': combines LoRA factors"),
        (("method.name=fed-hello", "data.proxy=5"), r"method.allocation = 'fim' needs LoRA factors"),
        (("method.name=fedra",), r"method.drop_layers = true: with adapter.kind = 'mixture' blocks share branches"),
        (("aggregation.rule=median",), r"aggregation.rule = 'median': method.name = 'heterotune' aligns"),
        (("aggregation.align=soft",), r"aggregation.align = 'soft': method.name = 'heterotune' has a rule of its own"),
        (("privacy.mode=central", "method.weighting=uniform"), r"privacy.mode = 'central': method.name = 'heterotune'"),
        (("adapter.branches=1", "adapter.trained=own"), r"adapter.branches = 1: vit-4x24 is architecture number 2"),
        (
            ("adapter.num_slots=9", "adapter.slot_rule=spaced"),
            r"adapter.num_slots = 9: cannot be spaced over the 3 blocks",
        ),
        (("method.share=false", "method.align=soft"), r"method.align = 'soft': with method.share = false"),
        (("adapter.deviation=0.0",), r"adapter.deviation is 0, so all branches would be equal"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_load(sizes, changes, told):
    problems = check(sizes(*changes))
    assert any(re.search(told, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("key", "value"), [("rank", "8"), ("sites", '["attention"]'), ("trained", '"own"'), ("num_slots", "1")]
)
def test_groups_that_differ_in_what_is_shared_are_refused_by_key(sizes, tmp_path, key, value):
    (tmp_path / "odd.toml").write_text(SIZES + f"adapter = {{{key} = {value}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"adapter.{key} is not the same in all groups \(small .*, wide .*\)"):
        build(load(tmp_path / "odd.toml")[0])


def test_groups_may_differ_in_what_is_their_own(sizes, tmp_path):
    text = SIZES + 'adapter = {gate = "token", placement = "parallel", activation = "identity"}\n'
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    small, wide = build(load(tmp_path / "own.toml")[0]).groups
    assert (small.put.settings.gate, wide.put.settings.gate) == ("static", "token")


def test_an_exported_mixture_loads_into_the_bare_model_and_scores_as_the_run_did(sizes, tmp_path):
    wanted = sizes()
    folder = run(wanted, tmp_path / "run")
    out = export(folder, tmp_path / "out", group="wide")
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "adapter.safetensors", "base", "fedquilt_adapter.json", "labels.json")
    ]
    told = json.loads((out / "fedquilt_adapter.json").read_text())
    experiment = build(wanted)
    group = experiment.groups[1]
    assert told["settings"] == json.loads(json.dumps(asdict(group.put.settings)))
    bare = load_model(
        group.config.model.name, "image-classification", num_classes=10, rng=experiment.rng.child("model")
    )
    model = load_adapter(bare.model, out)
    _, state, _ = Record.open(folder).load_checkpoint()
    group.bench.load(group.server.params(experiment.method.view(state, group.server.profile)))
    pixels = bare.prepare({name: column[:6] for name, column in group.server.splits["test"].items()})
    with torch.no_grad():
        assert torch.equal(model(**pixels).logits, group.bench.model(**pixels).logits)
    export(folder, tmp_path / "out", group="small")  # an adapter may be replaced
    assert json.loads((out / "fedquilt_adapter.json").read_text())["num_layers"] == 3


@pytest.mark.parametrize("gate", ["uniform", "static"])
def test_a_linear_mixture_is_exported_as_lora_that_peft_loads_exactly(sizes, tmp_path, gate):
    import transformers
    from peft import PeftModel

    changes = ("adapter.activation=identity", "adapter.placement=parallel", f"adapter.gate={gate}")
    wanted = sizes(*changes, "training.learning_rate=0.1")
    folder = run(wanted, tmp_path / "run")
    experiment = build(wanted)
    _, state, _ = Record.open(folder).load_checkpoint()
    for group in experiment.groups:
        own = folder / "adapters" / f"global-{group.label}"
        assert (own / "adapter_config.json").is_file()
        bare = load_model(
            group.config.model.name, "image-classification", num_classes=10, rng=experiment.rng.child("model")
        )
        group.bench.load(group.server.params(experiment.method.view(state, group.server.profile)))
        pixels = bare.prepare({name: column[:6] for name, column in group.server.splits["test"].items()})
        with torch.no_grad():
            plain = bare.model(**pixels).logits
            expected = group.bench.model(**pixels).logits
            model = PeftModel.from_pretrained(bare.model, own).eval()
            torch.testing.assert_close(model(**pixels).logits, expected, rtol=0, atol=1e-5)
        assert (expected - plain).abs().max() > 1e-3
        assert isinstance(model.base_model.model, transformers.PreTrainedModel)


LLAMAS = """
seed = 3
[model]
name = "shape:llama-3.2-1b"
task = "causal-lm"
max_length = 16
[data]
source = "nowhere.jsonl"
[partition]
num_clients = 3
[adapter]
kind = "mixture"
rank = 32
alpha = 32
[training]
batch_size = 1
[method]
name = "heterotune"
[[groups]]
label = "1b"
budget = 16
[[groups]]
label = "3b"
budget = 28
model = {name = "shape:llama-3.2-3b", task = "causal-lm", max_length = 16}
[[groups]]
label = "8b"
budget = 32
model = {name = "shape:llama-3.1-8b", task = "causal-lm", max_length = 16}
"""


@pytest.mark.usefixtures("bytes_alone")
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.995), ("int8", 0.998)])
@pytest.mark.parametrize("trained", ["own", "all"])
def test_ht_11_among_llamas_99_5_per_cent_is_saved_and_99_8_with_int8(tmp_path, dtype, least, trained):
    """Rank 32, all blocks, both directions, against the whole model in float32."""
    (tmp_path / "llamas.toml").write_text(LLAMAS)
    plans = plan(load(tmp_path / "llamas.toml", [f"network.dtype={dtype}", f"adapter.trained={trained}"])[0])
    widths, depths, sizes = (2048, 3072, 4096), (16, 28, 32), (1_235_814_400, 3_212_749_824, 8_030_261_248)
    for one, width, depth, size in zip(plans, widths, depths, sizes, strict=True):
        assert one.model_bytes == 4 * size
        slots, parts, branches, rank = 16, 2, 3, 32
        numbers = depth * parts * (2 * rank * width + branches) + slots * parts * branches * rank**2
        up = numbers if trained == "all" else numbers - slots * parts * (branches - 1) * rank**2
        wide = 4 if dtype == "float32" else 1
        assert 0 <= one.bytes_down - wide * numbers < 0.01 * one.bytes_down  # int8 has a scale for each tensor
        assert 0 <= one.bytes_up - wide * up < 0.01 * one.bytes_up
        assert one.trained_parameters == up
        assert one.saving >= least


@pytest.mark.usefixtures("bytes_alone")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_ht_11_what_is_planned_is_what_then_travels(sizes, tmp_path, dtype):
    wanted = sizes("rounds=1", f"network.dtype={dtype}", words=True)
    planned = {str(one.client): (one.bytes_down, one.bytes_up) for one in plan(wanted)}
    moved = read_rounds(run(wanted, tmp_path / "run"))[0]["exchanges"][0]["clients"]
    assert len(moved) == 6
    assert {id: (one["bytes_down"], one["bytes_up"]) for id, one in moved.items()} == planned


@pytest.mark.usefixtures("bytes_alone")
def test_the_base_is_counted_without_branches_that_no_block_uses(sizes):
    used = {one.group: one.model_bytes for one in plan(sizes("adapter.num_slots=3"))}
    assert used == {one.group: one.model_bytes for one in plan(sizes("adapter.num_slots=9"))}


@pytest.mark.parametrize("rule", ["projection", "reference", "soft", "mean"])
def test_alignment_is_to_be_had_for_a_plain_mean_too(sizes, tmp_path, rule, fingerprint, copying):
    wanted = sizes("method.name=fedit", f"aggregation.align={rule}", words=True)
    folder = run(wanted, tmp_path / "run", copying(tmp_path / "run", tmp_path / "cut"))
    state = read_rounds(folder)[-1]["state"]
    assert state["conflicts"].keys() == set(read_environment(folder)["apart"])
    assert {len(flat) for flat in state["cosines"].values()} == {4}  # two clients in each architecture
    found = alignments(read_run(folder))
    assert [one.names for one in found.values()] == [(f"client {k}", f"client {k + 1}") for k in (0, 2, 4)]
    assert fingerprint(resume(tmp_path / "cut")) == fingerprint(folder)


def test_alignment_of_low_rank_adapters_and_of_groups_that_train_one_adapter(sizes, tmp_path):
    text = SIZES.replace('kind = "mixture"\n', "") + '\n[[groups]]\nlabel = "twin"\nbudget = 2\n'
    (tmp_path / "twins.toml").write_text(text, encoding="utf-8")
    changes = ["method.name=fedit", "aggregation.align=projection", "aggregation.align_groups=group"]
    folder = run(load(tmp_path / "twins.toml", changes)[0], tmp_path / "run")
    state = read_rounds(folder)[-1]["state"]
    assert sorted(len(flat) for flat in state["cosines"].values()) == [1, 4]
    assert sorted(one.names for one in alignments(read_run(folder)).values()) == [("small", "twin"), ("wide",)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ("aggregation.align_per=tensor",),
            "aggregation.align_per = 'tensor': needs aggregation.align, which is 'none'",
        ),
        (("aggregation.align=soft", "aggregation.rule=median"), "needs a mean of updates, and aggregation.r"),
        (("aggregation.align=soft", "method.name=flora"), "and method.name = 'flora' uses another rule"),
        (("aggregation.align=soft", "method.name=local-only"), "there are no updates to align"),
        (("aggregation.align=soft", "aggregation.align_groups=group"), "there are no [[groups]]"),
        (
            ("aggregation.align=soft", "privacy.mode=central", "method.name=fedit", "method.weighting=uniform"),
            "privacy.mode = 'central': aggregation.align = 'soft' needs each client's update",
        ),
    ],
)
def test_alignment_that_cannot_be_is_refused(config, changes, told):
    assert any(told in problem for problem in check(config("method.name=fedit", *changes)))


def test_local_privacy_clips_and_noises_mixtures_too(sizes, tmp_path):
    wanted = sizes("privacy.mode=local", "method.weighting=uniform", "privacy.test_key=1", "rounds=1")
    folder = run(wanted, tmp_path / "run")
    moved = read_rounds(folder)[0]["exchanges"][0]["clients"]
    assert len(moved) == 6
    assert all(not one["metrics"] for one in moved.values())


def test_a_round_without_usable_replies_names_who_failed(sizes, tmp_path):
    with pytest.raises(RoundError, match="client 0"):
        run(sizes("defence.max_update_norm=1e-12"), tmp_path / "run")
