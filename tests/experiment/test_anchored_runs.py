"""Runs with adapters that are aligned to the smallest model: among two widths, resume, and what is refused."""

import shutil
import tomllib

import pytest
import torch

from fedquilt import load_adapter
from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.experiment import build, resume, run
from fedquilt.experiment.check import check
from fedquilt.experiment.plan import plan
from fedquilt.models.hf import load_model
from fedquilt.privacy.ledger import ledgers
from fedquilt.record import Record, read_rounds

FILE = """
rounds = 2
threads = 1
model = { name = "tiny:vit?layers=2&width=8", task = "image-classification" }
data = { source = "sklearn:digits", limit = 60 }
partition = { num_clients = 4, test_fraction = 0.2 }
adapter = { kind = "anchored", rank = 4, alpha = 4, num_blocks = 2 }
axes = { source = "glyphs", inputs = 60, held_out = 20, basis = 8 }
training = { steps = 2, batch_size = 8, learning_rate = 0.01 }
method = { name = "co-lora" }

[[groups]]
label = "small"
budget = 2

[[groups]]
label = "large"
budget = 3
model = { name = "tiny:vit?layers=3&width=16", task = "image-classification" }
"""


def config(*changes):
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse(tomllib.loads(text))


def test_a_run_among_architectures_is_saved_as_lora_and_resumes_to_the_same_bits(tmp_path):
    personal = ('"co-lora"', '"co-lora", aggregation = "rela"')
    whole = run(config(personal), tmp_path / "whole")
    again = shutil.copytree(whole, tmp_path / "again")
    lines = read_rounds(whole)
    assert set(lines[0]["state"]["agreement"]) == {f"{site}.{slot}" for site in ("query", "value") for slot in (0, 1)}
    resume(again, back_to=1)
    one, other = (folder / "adapters" / "client-003" / "adapter_model.safetensors" for folder in (whole, again))
    assert one.read_bytes() == other.read_bytes()
    client = build(config()).clients[0]
    base = load_model("tiny:vit?layers=2&width=8", "image-classification", num_classes=10, rng=Rng(9)).model
    adapted = load_adapter(base, whole / "adapters" / "client-000").eval()
    batch = {name: column[:3] for name, column in client.train.items()}
    assert torch.isfinite(adapted(**client.bench.prepare(batch)).logits).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((('kind = "anchored"', 'kind = "common"'), (", num_blocks = 2", "")), "adapter.kind = 'common': method.name"),
        ((("basis = 8", "basis = 3"),), "axes.basis = 3: is below adapter.rank = 4"),
        ((("num_blocks = 2", "num_blocks = 3"),), "adapter.num_blocks is 3, and a model has 2 blocks"),
        ((("num_blocks = 2", "head_scale = 2.0"),), "head_scale = 2: has no effect without a common head"),
        ((('"co-lora"', '"co-lora", momentum = 0.1'),), "method.momentum"),
        (
            (('[[groups]]\nlabel = "small"', 'aggregation = { align = "mean" }\n\n[[groups]]\nlabel = "small"'),),
            "aggregation.align = 'mean': method.name = 'co-lora' averages some tensors over all",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises((ConfigError, ValueError)) as caught:
        build(config(*changes))
    assert message in str(caught.value)


def test_a_common_head_goes_with_it():
    assert check(config(("num_blocks = 2", "num_blocks = 2, common_head = true, head_scale = 2.0, bias = false"))) == []


@pytest.mark.usefixtures("bytes_alone")
def test_a_plan_states_what_the_anchor_says_once():
    planned = {(one.group, one.once_down, one.once_up) for one in plan(config())}
    # of each of 2 x 2 modules: 60 x 4 rank-space outputs, 60 x 8 whitened outputs and 8 x 4, each of 4 bytes
    said = 4 * 4 * (60 * 4 + 60 * 8 + 8 * 4)
    seen = 4 * 4 * 20 * 4
    assert planned == {("small", said, said + seen), ("large", said, seen)}


def test_under_privacy_each_round_is_a_release_and_what_aligns_the_models_has_no_noise(tmp_path):
    states = []
    for noise in (2.0, 50.0):
        private = f'privacy = {{ mode = "local", noise_multiplier = {noise}, test_key = 7 }}'
        changes = (('"co-lora"', '"co-lora", weighting = "uniform"'), ("threads = 1", f"threads = 1\n{private}"))
        folder = run(config(*changes), tmp_path / str(noise))
        lines = read_rounds(folder)
        assert [line["privacy"]["releases"] for line in lines] == [1, 2]
        assert all(not exchange["dropped"] for line in lines for exchange in line["exchanges"])
        spent = [own["releases"] for own in ledgers(folder / "sites").values()]
        assert spent == [2] * 4  # the exchange that aligns the models says nothing of a client's own rows
        states.append(Record.open(folder).load_checkpoint()[1])
    one, other = (state["params"] for state in states)
    assert one.keys() == other.keys()
    assert all(not torch.equal(one[name], other[name]) for name in one)
    assert len(states[0]["axes"]) > 0
    assert torch.equal(*(torch.cat([tensor.flatten() for tensor in tensors(state["axes"])]) for state in states))


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [one for value in tree.values() for one in tensors(value)] if isinstance(tree, dict) else []
