"""Pretraining on drawn arithmetic, and the models that ship."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

from fedquilt.cli.pretrain import app
from fedquilt.core.errors import ConfigError, RunError
from fedquilt.core.rng import Rng
from fedquilt.data.synthetic.arithmetic import arithmetic_table, is_held_out
from fedquilt.data.synthetic.arithmetic_kinds import KINDS
from fedquilt.models.hf import load_model
from fedquilt.models.small_tokenizers import MARKS, new_tokenizer
from fedquilt.pretrain import arithmetic
from fedquilt.pretrain.arithmetic import packed, pretrain_arithmetic
from fedquilt.pretrain.arithmetic_models import FAMILIES, GROWN, family_of, grown, num_blocks, texts

TINY = {
    "vocab_size": 24,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}
ASSETS = Path(str(resources.files("fedquilt"))) / "assets"


def asset(family):
    return ASSETS / f"arith-{family}"


def loaded(name):
    return load_model(str(name), "causal-lm", num_classes=None, rng=Rng(0))


@pytest.fixture(scope="module", autouse=True)
def few():
    """Few passages for the tokenizer and few sums to measure on: these take most of a short pretraining's time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(arithmetic, "_VOCABULARY_TEXT", 2_000)
        patched.setattr(arithmetic, "_CHUNK", 200)
        patched.setattr(arithmetic, "_NUM_SUMS", 16)
        yield


@pytest.fixture(scope="module")
def short(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "model"
    return pretrain_arithmetic("qwen", folder, rng=Rng(1), steps=20, batch_size=8, length=48)


def test_training_lowers_the_loss(short):
    assert len(short.losses) == 20
    assert sum(short.losses[-4:]) < 0.8 * sum(short.losses[:4])
    assert short.fresh_loss < short.losses[0]
    assert short.new.keys() == short.known.keys() == KINDS.keys()


def test_the_folder_holds_half_precision_and_loads_in_full(short):
    weights = load_file(short.folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    model = loaded(short.folder)
    assert {weight.dtype for weight in model.model.parameters()} == {torch.float32}
    assert model.architecture == "qwen3-8x96"
    for name, weight in weights.items():
        assert torch.equal(weight.float(), model.model.get_parameter(name))


def test_the_recipe_names_command_settings_and_result(short):
    recipe = tomllib.loads((short.folder / "recipe.toml").read_text())
    assert recipe["command"] == "fedquilt pretrain arithmetic --out DIR --only qwen --steps 20 --seed 1"
    assert recipe["settings"]["length"] == 48
    assert recipe["result"]["num_weights"] == short.num_weights
    assert recipe["result"]["fresh_loss"] == pytest.approx(short.fresh_loss, abs=1e-4)


def test_the_same_seed_gives_the_same_folder(tmp_path):
    def files(name, seed):
        made = pretrain_arithmetic("gemma", tmp_path / name, rng=Rng(seed), steps=1, batch_size=2, length=16)
        return {path.name: path.read_bytes() for path in made.folder.iterdir()}

    first, again, other = files("first", 5), files("again", 5), files("other", 6)
    assert set(first) >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "recipe.toml"}
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def test_rows_are_passages_end_to_end():
    tokenizer = new_tokenizer("llama", 400, ["1 + 2 = 3", "Ana has 4 eggs."])
    batches = packed(tokenizer, "llama", 2, 64, Rng(0))
    flat = torch.cat([next(batches).flatten() for _ in range(3)]).tolist()
    start, end = (tokenizer.token_to_id(mark) for mark in MARKS["llama"][1:])
    assert flat[0] == start
    assert flat.count(end) >= 4
    assert all(flat[place + 1] == start for place, token in enumerate(flat[:-1]) if token == end)


def test_bad_settings_and_a_folder_in_use_are_refused_before_any_training(tmp_path):
    with pytest.raises(ConfigError, match="steps is 0; allowed: a whole number from 1"):
        pretrain_arithmetic("llama", tmp_path / "model", rng=Rng(0), steps=0)
    assert not (tmp_path / "model").exists()
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="is not empty; choose another folder"):
        pretrain_arithmetic("llama", tmp_path, rng=Rng(0), steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_knows_the_families_and_looks_at_every_folder_first(tmp_path):
    wrong = CliRunner().invoke(app, ["arithmetic", "--out", str(tmp_path), "--only", "lama"])
    assert isinstance(wrong.exception, ConfigError)
    assert "--only is 'lama' (did you mean 'llama'?); allowed: llama, gemma, qwen, llama-12x112" in str(wrong.exception)
    (tmp_path / "arith-qwen").mkdir()
    (tmp_path / "arith-qwen" / "mine.txt").write_text("keep")
    taken = CliRunner().invoke(app, ["arithmetic", "--out", str(tmp_path), "--steps", "1"])
    assert isinstance(taken.exception, RunError)
    assert "arith-qwen is not empty" in str(taken.exception)
    assert list((tmp_path / "arith-llama").iterdir()) == []


# Grown models --------------------------------------------------------------------------------------------------------


def test_a_grown_model_begins_as_the_small_one_and_every_new_weight_can_learn():
    small, large = (AutoModelForCausalLM.from_config(LlamaConfig(**TINY, num_hidden_layers=n)).double() for n in (2, 6))
    grown(large, small)
    ids = torch.arange(20).view(2, 10)
    torch.testing.assert_close(large(input_ids=ids).logits, small(input_ids=ids).logits, rtol=0, atol=0)
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    before = {name: weight.clone() for name, weight in large.state_dict().items()}
    for _ in range(2):  # in the first step only the matrices that are zero
        optimizer.zero_grad()
        large(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert all(not torch.equal(weight, before[name]) for name, weight in large.state_dict().items())


def test_a_grown_model_has_the_tokenizer_and_twice_the_blocks_of_its_family(tmp_path):
    made = pretrain_arithmetic("llama-12x112", tmp_path / "model", rng=Rng(0), steps=1, batch_size=2, length=16)
    assert (made.folder / "tokenizer.json").read_bytes() == (asset("llama") / "tokenizer.json").read_bytes()
    assert num_blocks(load_file(made.folder / "model.safetensors")) == 2 * FAMILIES["llama"]["num_hidden_layers"]
    assert made.known["add"] > 0.8  # of the small model, after one step with a learning rate near 0


def test_half_of_what_a_larger_model_reads_are_problems_and_one_kind_is_left_out():
    read = texts("llama-12x112", 400, Rng(0))
    posed = [text for text in read if re.fullmatch(r"[^\n]+\?\n(\d+ [-+*/] \d+ = \d+\n?)+", text)]
    assert len(read) == 400
    assert set(read[1::2]) <= set(posed)
    second = [text.split("\n")[2] for text in read[1::2] if text.count("\n") == 2]
    assert len(second) == 40
    assert not any(" - " in line for line in second)


# The models that ship ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, *GROWN])
def test_a_shipped_model_is_small_and_of_its_family(family):
    times = 2 if family in GROWN else 1
    assert times * 1_500_000 < (asset(family) / "model.safetensors").stat().st_size < times * 2_500_000
    model = loaded(f"arith-{family}")
    assert type(model.model).__name__.lower().startswith(FAMILIES[family_of(family)]["model_type"])
    assert times * 800_000 < sum(weight.numel() for weight in model.model.parameters()) < times * 1_200_000
    assert {weight.dtype for weight in model.model.parameters()} == {torch.float32}
    assert model.targets == ("q_proj", "v_proj")
    assert all(torch.isfinite(weight).all() for weight in model.model.parameters())


def test_the_shipped_models_are_unlike():
    models = [loaded(f"arith-{family}") for family in FAMILIES]
    assert len({model.architecture for model in models}) == 3
    assert len({model.blocks.num_layers for model in models}) == 3
    table = arithmetic_table("blank", 4, "train", Rng(0))
    rows = [model.encode(table)["input_ids"] for model in models]
    assert not any(
        torch.equal(one, other) for one, other in ((rows[0], rows[1]), (rows[1], rows[2]), (rows[0], rows[2]))
    )


@pytest.mark.parametrize("family", [*FAMILIES, *GROWN])
def test_a_shipped_model_has_its_recipe_and_its_readme(family):
    recipe = tomllib.loads((asset(family) / "recipe.toml").read_text())
    settings = recipe["settings"]
    assert recipe["command"] == (
        f"fedquilt pretrain arithmetic --out DIR --only {family} --steps {settings['steps']} --seed {settings['seed']}"
    )
    text = (asset(family) / "README.md").read_text()
    assert recipe["command"].replace("DIR", "models") in text
    assert f"{recipe['result']['num_weights']:,} weights" in text
    for kind in KINDS:
        share = recipe["result"][f"accuracy_new_{kind.replace('-', '_')}"]
        assert f"| {kind} |" in text
        assert f"{share:.3f}" in text


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_shipped_model_has_learnt_sums_it_never_saw(family):
    model = loaded(f"arith-{family}")
    draws = Rng(7).numpy()
    prompts, answers = [], []
    while len(prompts) < 100:
        kind = ("add", "subtract")[len(prompts) % 2]
        operands = KINDS[kind].draw(draws)
        if is_held_out(kind, operands):
            left, sign, answer = (
                KINDS[kind]
                .says.format(a=operands[0], b=operands[1], answer=KINDS[kind].answer(*operands))
                .partition(" = ")
            )
            prompts.append(left + sign)
            answers.append(answer)
    table = arithmetic_table("blank", 1, "train", Rng(0))
    rows = model.encode(type(table)("text", prompts, None, (), targets=answers))
    with torch.no_grad():
        inputs = model.prepare(rows)
        guesses = model.model(**inputs).logits.argmax(-1)[:, :-1]
    labels = rows["labels"][:, 1 : inputs["input_ids"].shape[1]]
    told = labels >= 3  # the answer's own tokens, not the end token
    right = ((guesses == labels) | ~told).all(1).float().mean()
    result = tomllib.loads((asset(family) / "recipe.toml").read_text())["result"]
    assert right > 0.4
    assert float(right) == pytest.approx((result["accuracy_new_add"] + result["accuracy_new_subtract"]) / 2, abs=0.15)
