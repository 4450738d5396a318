"""Runs with the common and the private part apart: what is exported, and what is refused."""

import json
from copy import deepcopy
from pathlib import Path

import peft
import pytest
import torch

from fedquilt import load_adapter
from fedquilt.adapters.common.module import PARTS
from fedquilt.adapters.common.parts import PARTS_FILE
from fedquilt.config.load import parse
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.experiment import build, run
from fedquilt.experiment.export import export
from fedquilt.experiment.merged_model import export_merged
from fedquilt.experiment.models import load
from fedquilt.experiment.trained_model import base_of_run
from fedquilt.record import Record

RUN = {
    "rounds": 2,
    "threads": 1,
    "model": {"name": "tiny:vit?layers=2&width=8", "task": "image-classification"},
    "data": {"source": "sklearn:digits", "limit": 60},
    "partition": {"num_clients": 4, "test_fraction": 0.2, "validation_fraction": 0.3},
    "adapter": {"kind": "common", "rank": 4, "alpha": 4, "private_rank": 1, "parts": "apart"}
    | {"private_targets": ["q_proj", "fc2"], "private_alpha": 2},
    "axes": {"source": "glyphs:80", "inputs": 60, "held_out": 20, "basis": 8},
    "training": {"steps": 2, "batch_size": 8, "learning_rate": 0.01},
    "method": {"name": "heterotune", "align": "none"},
    "groups": [
        {"label": "small", "budget": 2},
        {"label": "large", "budget": 3}
        | {"model": {"name": "tiny:vit?layers=3&width=16", "task": "image-classification"}},
    ],
}


def test_parts_are_plain_lora_for_peft_and_their_mean_is_the_exported_model(tmp_path: Path) -> None:
    config = parse(RUN)
    folder = run(config, tmp_path / "run")
    experiment, (_, state, _) = build(config), Record.open(folder).load_checkpoint()
    group = experiment.groups[0]
    group.bench.load(group.server.params(experiment.method.view(state, group.server.profile)))
    rows = {name: column[:5] for name, column in experiment.clients[0].train.items()}
    saved = folder / "adapters" / "global-small"

    def base():
        return load(*base_of_run(folder, saved, None, "small")).model.eval()

    inputs = group.bench.prepare(rows)
    with torch.no_grad():
        wanted, _ = group.bench.forward(rows)
        found = load_adapter(base(), saved).eval()(**inputs).logits
        parts = [peft.PeftModel.from_pretrained(base(), saved / part).eval()(**inputs).logits for part in PARTS]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    weights = json.loads((saved / PARTS_FILE).read_text())["weights"]
    mean = sum(weights[part] * logits for part, logits in zip(PARTS, parts, strict=True))
    torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*parts)
    export(folder, tmp_path / "out", group="small")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {PARTS_FILE, *PARTS, "base"}
    with pytest.raises(ModelError, match=r"--merged: the adapter has two parts whose logits are averaged"):
        export_merged(folder, tmp_path / "merged", group="small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"private_rank": 0, "private_targets": None, "private_alpha": None},
            "parts: no effect without a private",
        ),
        ({"private_rank": 0, "parts": "together"}, "private_targets and private_alpha: no effect without a private"),
    ],
)
def test_keys_of_a_private_lora_without_one_are_refused(change, message) -> None:
    adapter = {key: value for key, value in (RUN["adapter"] | change).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        parse({**deepcopy(RUN), "adapter": adapter})


def test_language_models_have_no_parts_apart() -> None:
    model = {"name": "tiny:llama?layers=2&width=8", "task": "causal-lm"}
    text = {"model": model, "data": {"source": "arithmetic:blank?train=40&test=8"}, "groups": RUN["groups"][:1]}
    adapter = {key: value for key, value in RUN["adapter"].items() if key != "private_targets"}
    text |= {"adapter": adapter, "axes": {"inputs": 30, "held_out": 10, "basis": 8}}
    with pytest.raises(ConfigError, match=r"adapter\.parts = 'apart': averages the logits of classifiers, and task"):
        build(parse({**RUN, **text}))


def test_a_method_that_merges_into_the_base_of_both_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"adapter\.parts = 'apart': '.*' merges changes into the base, which both"):
        build(parse({**RUN, "method": {"name": "flora"}}))
