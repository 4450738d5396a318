"""Packing as a run file asks for it: what check says of it, what is refused, and what a run counts."""

import re

import pytest

from fedquilt.config.load import load
from fedquilt.experiment.check import check
from fedquilt.experiment.run import run
from fedquilt.record import read_rounds

FILE = """
seed = 3
rounds = 1
device = "cpu"
threads = 1

[model]
name = "tiny:llama?layers=2&width=16"
task = "causal-lm"
max_length = 400

[data]
source = "arithmetic:blank?train=24&test=6"

[partition]
num_clients = 2

[clients]
shares = "1"
budgets = [2]

[adapter]
rank = 2

[training]
epochs = 2
batch_size = 2
packing = true

[method]
name = "fedit"
"""


@pytest.fixture
def wanted(tmp_path):
    """``wanted(*changes)``: the config with these changes."""
    (tmp_path / "packed.toml").write_text(FILE)
    return lambda *changes: load(tmp_path / "packed.toml", changes)[0]


def test_check_says_what_packing_makes_of_the_rows(wanted):
    notes, none = [], []
    assert check(wanted(), notes=notes) == check(wanted("training.packing=false"), notes=none) == none == []
    (note,) = notes
    found = re.fullmatch(
        r"training.packing: (\d+) examples fit into (\d+) rows of (\d+) tokens, (\d+)% of which are no padding; "
        r"training.batch_size counts such rows",
        note,
    )
    examples, rows, width, share = map(int, found.groups())
    assert (examples, width) == (24, 400)
    assert 24 / 4 < rows < 24 / 2
    assert share > 75


def test_check_tries_a_model_that_mixes_examples(wanted, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from fedquilt.models.text import NUM_TOKENS, SPECIAL, byte_tokenizer

    shape = {"vocab_size": NUM_TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **shape, **special)).save_pretrained(tmp_path / "b")
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(start_and_end=False), **names)
    tokenizer.save_pretrained(tmp_path / "b")
    changes = (f"model.name={tmp_path / 'b'}", "adapter.targets=['query_key_value']")
    assert check(wanted(*changes, "training.packing=false")) == []
    (problem,) = check(wanted(*changes))
    assert "training.packing = true does not work with a bloom model" in problem


@pytest.mark.parametrize("changes", [("aggregation.align=soft",), ("method.name=heterotune", "adapter.kind=mixture")])
def test_packing_is_refused_where_the_server_must_know_the_number_of_steps(wanted, changes):
    (problem,) = check(wanted(*changes))
    assert problem.startswith("training.packing = true: with training.epochs")
    assert check(wanted(*changes, "training.steps=2")) == []
    assert check(wanted(*changes, "training.packing=false")) == []


def test_a_run_counts_examples_and_is_evaluated_in_rows_of_their_own(wanted, tmp_path):
    changes = "training.learning_rate=1e-9"  # so that both are evaluated with the same adapters, up to rounding
    folders = [run(wanted(changes, f"training.packing={on}"), tmp_path / on) for on in ("false", "true")]
    plain, packed = (read_rounds(folder)[0] for folder in folders)
    before, after = (line["exchanges"][0]["clients"] for line in (plain, packed))
    assert [one["share"] for one in after.values()] == [one["share"] for one in before.values()]
    for client, one in after.items():
        assert 2 * 2 <= one["metrics"]["steps"] < before[client]["metrics"]["steps"]
        assert one["metrics"]["loss"] == pytest.approx(before[client]["metrics"]["loss"], rel=1e-4)
    assert packed["evaluation"]["global"] == pytest.approx(plain["evaluation"]["global"], rel=1e-4)


@pytest.mark.parametrize("base", ["model.dtype=bfloat16", "model.quantization=int8", "training.precision=bf16"])
def test_gradient_checkpointing_changes_no_bit_beside_packing_and_short_bases(wanted, tmp_path, fingerprint, base):
    changes = (base, "data.limit=12", "training.steps=2", "adapter.dropout=0.2")
    plain, again = (
        fingerprint(run(wanted(*changes, f"training.gradient_checkpointing={on}"), tmp_path / on))
        for on in ("false", "true")
    )
    assert plain == again
