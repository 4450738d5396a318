"""DoRA, every linear module and ranks by pattern in whole runs: planned, resumed, exported, combined with methods."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fedquilt.adapters.lora.peft_files import load_peft
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.experiment.build import build
from fedquilt.experiment.check import check
from fedquilt.experiment.memory import afforded
from fedquilt.experiment.plan import plan
from fedquilt.experiment.run import resume, run
from fedquilt.methods import METHODS, traits_of
from fedquilt.models.hf import load_model
from fedquilt.record import Record, read_rounds

DORA = ("adapter.use_dora=true", "adapter.targets=all-linear")
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
GOES_WITH_DORA = (
    *("exclusive", "fed-hello", "fed-hello-released", "fedit", "fedra", "fedrot-lora", "fedrpca", "full", "hetlora"),
    *("fedcollm", "fedcot", "fedmkt", "lada", "local-only", "straggler"),
)


@pytest.mark.usefixtures("bytes_alone")
def test_a_run_with_dora_is_planned_resumed_and_exported_for_peft(config, tmp_path, fingerprint, copying):
    wanted = config(*DORA, "adapter.rank_pattern={'layers.1.mlp.fc1'=3}", "adapter.alpha_pattern={fc2=2.0}")
    plans = {one.client: one for one in plan(wanted)}
    whole = run(wanted, tmp_path / "whole", copying(tmp_path / "whole", tmp_path / "half"))
    (fit,) = read_rounds(whole)[0]["exchanges"]
    for client, moved in fit["clients"].items():
        assert moved["bytes_down"] == plans[int(client)].bytes_down
    resume(tmp_path / "half", wanted)
    assert fingerprint(tmp_path / "half") == fingerprint(whole)

    params = Record.open(whole).load_checkpoint()[1]["params"]
    exported, settings = load_peft(whole / "adapters" / "global")
    assert all(torch.equal(exported[name], value) for name, value in params.items())
    told = json.loads((whole / "adapters" / "global" / "adapter_config.json").read_text())
    assert (told["use_dora"], told["rank_pattern"], told["alpha_pattern"]) == (
        *(True, {"layers.1.mlp.fc1": 3}, {"fc2": 2.0}),
    )
    assert {name: len(value) for name, value in params.items() if name.endswith("fc1.lora_A")} == {
        name: 3 if "layers.1." in name else settings.rank for name in params if name.endswith("fc1.lora_A")
    }
    experiment = build(wanted)
    experiment.only.bench.load(params)
    base = load_model(wanted.model.name, wanted.model.task, num_classes=10, rng=experiment.rng.child("model")).model
    theirs = PeftModel.from_pretrained(base, str(whole / "adapters" / "global")).eval()
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(pixel_values=pixels).logits, experiment.only.bench.model(pixel_values=pixels).logits
        )


@pytest.mark.usefixtures("bytes_alone")
@pytest.mark.parametrize(
    ("more", "theirs"),
    [
        (("adapter.use_dora=true",), {"use_dora": True}),
        (("adapter.targets=all-linear",), {"target_modules": EVERY}),
        (DORA, {"target_modules": EVERY, "use_dora": True}),
        (("adapter.rank_pattern={v_proj=1}",), {"rank_pattern": {"v_proj": 1}}),
    ],
)
def test_a_plan_counts_what_peft_would_train(config, more, theirs):
    wanted = config("head.policy=frozen", "clients.budgets=[3,3,3]", "method.name=fedit", *more)
    model = load_model(wanted.model.name, wanted.model.task, num_classes=10, rng=Rng(0)).model
    settings = {"target_modules": ["q_proj", "v_proj"], **theirs}
    count, _ = get_peft_model(model, LoraConfig(r=wanted.adapter.rank, **settings)).get_nb_trainable_parameters()
    for one in plan(wanted):
        assert one.trained_parameters == count
        assert one.bytes_down == one.bytes_up == one.gradient_bytes == one.optimizer_bytes // 2 == 4 * count


def test_dora_trains_over_a_base_of_fewer_bits(config, tmp_path):
    base = ("model.dtype=bfloat16", "model.quantization=int8")
    wanted = config(*DORA, *base, "rounds=1", "clients.cohort=2", "training.gradient_checkpointing=true")
    one = plan(wanted)[0]
    folder = run(wanted, tmp_path / "run")
    params = Record.open(folder).load_checkpoint()[1]["params"]
    assert {value.dtype for value in params.values()} == {torch.float32}
    assert sum(4 * value.numel() for value in params.values()) == one.bytes_down
    experiment = build(wanted)
    first = experiment.method.init(experiment.rng.child("init"))["params"]
    moved = {name.rpartition(".")[2] for name in first if not torch.equal(first[name], params[name])}
    assert moved >= {"lora_A", "lora_B", "lora_magnitude_vector"}
    experiment.only.bench.load(params)
    for adapter in experiment.only.bench.adapters.values():
        torch.testing.assert_close(adapter.norms(), (adapter.base.weight.float() + adapter._dense()).norm(dim=1))


AVERAGE = [name for name in METHODS if traits_of(name).needs in ("tensors", "factors") and not traits_of(name).vertical]
"""Methods of clients with the same columns, whose trained tensors may be LoRA's."""


@pytest.mark.parametrize("method", AVERAGE)
def test_dora_goes_with_methods_that_average_tensors(config, method):
    wanted = config(f"method.name={method}", "adapter.use_dora=true", "data.proxy=8")
    problems = [problem for problem in check(wanted) if "use_dora" in problem]
    assert bool(problems) == (method not in GOES_WITH_DORA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("aggregation.rule=flexlora",), "'flexlora' combines the products s B A as changes of the weights"),
        (("method.name=fedex-lora",), "'fedex-lora' combines the products s B A"),
        (("method.name=ffa-lora",), "'ffa-lora' trains or sends one factor without the other (only B is sent)"),
        (("method.name=h2tune",), "'h2tune' shares matrices between the factors"),
    ],
)
def test_why_dora_does_not_go_with_a_method(config, changes, message):
    with pytest.raises(ConfigError) as caught:
        build(config(*changes, "adapter.use_dora=true"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "changes", [("aggregation.rule=hetlora",), ("method.name=fedex-lora", "method.residual_rank=0")]
)
def test_rules_that_average_factors_average_magnitudes_beside_them(config, changes):
    assert check(config(*changes, "adapter.use_dora=true")) == []


def test_magnitudes_travel_unrounded(config):
    method = build(config(*DORA, "network.dtype=int8")).method
    layout = build(config(*DORA)).layout
    magnitudes = {name for name in layout.depth if name.endswith("lora_magnitude_vector")}
    assert method.exchanges[0].wire.exact == magnitudes
    assert len(magnitudes) == len({name.rpartition(".")[0] for name in layout.depth if layout.depth[name] is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("adapter.rank_pattern={gate_proj=4}",),
            "adapter.rank_pattern holds 'gate_proj', which matches no adapted module; they are called q_proj, v_proj",
        ),
        (
            ("adapter.alpha_pattern={'layers.1.*'=4.0, q_proj=8.0}",),
            "adapter.alpha_pattern: 'layers.1.*' = 4 and 'q_proj' = 8 both match 'vit.layers.1.attention.q_proj'",
        ),
    ],
)
def test_a_pattern_matches_some_module_and_no_other_disagrees(config, changes, message):
    with pytest.raises(ConfigError) as caught:
        build(config(*changes))
    assert message in str(caught.value)


def test_a_clients_rank_limits_the_rank_of_every_module(config):
    patterned = ("method.name=flexlora", "adapter.rank_pattern={q_proj=8}", "adapter.rank=4")
    wanted = config(*patterned, "clients.ranks=[2,4,8]")
    experiment = build(wanted)
    held = {}
    for client in experiment.clients.values():
        ranks = {name.split(".")[-2]: len(value) for name, value in client.initial.items() if name.endswith("lora_A")}
        held[client.profile.budget.rank] = ranks
    assert held == {rank: {"q_proj": min(rank, 8), "v_proj": min(rank, 4)} for rank in (2, 4, 8)}
    with pytest.raises(ConfigError, match=r"rank = 4 is the server's, and clients.ranks has 9; raise it to 9"):
        config(*patterned, "clients.ranks=[2,4,9]")


def test_memory_lowers_the_ranks_of_patterns_too(config):
    wanted = config("method.name=fedit", "adapter.rank_pattern={q_proj=64}", "adapter.rank=4")
    peak = max(one.peak_bytes for one in plan(wanted))
    few = afforded(wanted, [peak / 1e9] * 3)
    assert {one.rank for one in few} == {64}
    lower = afforded(wanted, [min(one.peak_bytes for one in few) * 0.9 / 1e9] * 3)
    assert all(one.rank < 64 or one.layers < few[0].layers for one in lower)
