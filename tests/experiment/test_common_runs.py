"""Runs in common coordinates: public inputs, a run among architectures, resume, and what is refused."""

import tomllib
from pathlib import Path

import pytest
import torch

from fedquilt import load_adapter
from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.rng import Rng
from fedquilt.experiment import build, resume, run
from fedquilt.models.hf import load_model
from fedquilt.record import read_rounds

FILE = """
rounds = 2
threads = 1
model = { name = "tiny:vit?layers=2&width=8", task = "image-classification" }
data = { source = "sklearn:digits", limit = 60 }
partition = { num_clients = 4, test_fraction = 0.2 }
adapter = { kind = "common", rank = 4, alpha = 4, private_rank = 1 }
axes = { source = "glyphs", inputs = 60, held_out = 20, basis = 8 }
training = { steps = 2, batch_size = 8, learning_rate = 0.01 }
method = { name = "heterotune", align = "none" }

[[groups]]
label = "small"
budget = 2

[[groups]]
label = "large"
budget = 3
model = { name = "tiny:vit?layers=3&width=16", task = "image-classification" }
"""


def test_a_run_among_architectures_shares_cores_and_is_saved_as_lora(tmp_path: Path) -> None:
    folder = run(parse(tomllib.loads(FILE)), tmp_path / "run")
    lines = read_rounds(folder)
    assert set(lines[0]["state"]["agreement"]) >= {"attention.0", "feed-forward.1", "head"}
    assert (folder / "adapters" / "client-000" / "adapter_config.json").is_file()
    config = parse(tomllib.loads(FILE))
    experiment = build(config)
    client = experiment.clients[0]
    base = load_model("tiny:vit?layers=2&width=8", "image-classification", num_classes=10, rng=Rng(9)).model
    adapted = load_adapter(base, folder / "adapters" / "global-small").eval()
    batch = {name: column[:3] for name, column in client.train.items()}
    assert torch.isfinite(adapted(**client.bench.prepare(batch)).logits).all()


def test_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(parse(tomllib.loads(FILE)), tmp_path / "whole")
    again = run(parse(tomllib.loads(FILE)), tmp_path / "again")
    resume(again, back_to=1)
    one, other = (folder / "adapters" / "global-large" / "adapter_model.safetensors" for folder in (whole, again))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("axes = { inputs = 60 }", "axes.source: missing"),
        ('privacy = { mode = "local", clip_norm = 1.0, noise_multiplier = 1.0 }', "privacy.mode = 'local'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(change, message) -> None:
    text = FILE.replace('axes = { source = "glyphs", inputs = 60, held_out = 20, basis = 8 }', change)
    if "privacy" in change:
        text = FILE.replace("[[groups]]", change + "\n\n[[groups]]", 1)
    with pytest.raises(ConfigError, match=message):
        build(parse(tomllib.loads(text)))


def test_axes_without_adapters_that_read_them_have_no_effect() -> None:
    text = FILE.replace('kind = "common", rank = 4, alpha = 4, private_rank = 1', "rank = 4").replace(
        'name = "heterotune", align = "none"', 'name = "fedit"'
    )
    with pytest.raises(ConfigError, match=r"axes\.source = 'glyphs': has no effect.*\n.*axes\.inputs = 60"):
        build(parse(tomllib.loads(text)))


def test_too_few_public_inputs_are_refused_with_the_numbers(tmp_path: Path) -> None:
    text = FILE.replace('source = "glyphs", inputs = 60', 'source = "sklearn:digits", inputs = 5000')
    with pytest.raises(DataError, match=r"has 1797 rows, and axes\.inputs = 5000 and axes\.held_out = 20 need 5020"):
        build(parse(tomllib.loads(text)))
