"""Whole models with a run's adapter merged into them, read by transformers and compared with the live model."""

import pytest
import torch
import transformers

import fedquilt
from fedquilt.core.errors import ModelError, RunError
from fedquilt.experiment.merged_model import export_merged

FILE = {
    "rounds": 1,
    "model": {"name": "tiny:llama?layers=2&width=64", "task": "causal-lm"},
    "data": {"source": "arithmetic:blank?train=24&test=4"},
    "partition": {"num_clients": 2},
    "clients": {"shares": "1", "budgets": [2]},
    "training": {"steps": 2, "batch_size": 4, "learning_rate": 0.05},
    "method": {"name": "fedit"},
}


def run_of(folder, adapter=None, **model):
    tables = {**FILE, "model": {**FILE["model"], **model}}
    if adapter:
        tables |= {"adapter": adapter, "method": {"name": "heterotune"}}
    return fedquilt.run(tables, folder=folder)


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ({}, None),
        ({"dtype": "bfloat16"}, None),
        ({"quantization": "int8"}, None),
        ({"dtype": "bfloat16", "quantization": "nf4"}, None),
        ({"quantization": "int8"}, {"kind": "mixture", "activation": "identity", "rank": 4}),
    ],
    ids=["float32", "bfloat16", "int8", "nf4", "mixture"],
)
def test_a_merged_model_computes_what_the_run_s_model_does(tmp_path, model, adapter):
    run = run_of(tmp_path / "run", adapter, **model)
    export_merged(run.folder, tmp_path / "merged")
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert type(made).__name__ == "LlamaForCausalLM"
    assert not [name for name in made.state_dict() if "lora" in name or "codes" in name or "mixture" in name]
    ids = torch.arange(4, 40).view(2, 18)
    with torch.no_grad():
        live, merged = run.model()(input_ids=ids).logits.float(), made.eval()(input_ids=ids).logits.float()
    precision = torch.finfo(getattr(torch, model.get("dtype", "float32"))).eps
    torch.testing.assert_close(merged, live, rtol=0, atol=16 * precision * float(live.abs().max()))


def test_a_classifier_keeps_its_trained_head_and_its_class_names(tmp_path):
    model = {"name": "tiny:vit?image=8&patch=4", "task": "image-classification", "dtype": "bfloat16"}
    tables = {**FILE, "model": model, "data": {"source": "sklearn:digits", "limit": 40}}
    run = fedquilt.run(tables, folder=tmp_path / "run")
    export_merged(run.folder, tmp_path / "merged")
    made = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    live = run.model()
    assert made.config.id2label[3] == "3"
    assert torch.equal(made.classifier.weight, live.classifier.weight.bfloat16())
    pixels = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, given = live(pixel_values=pixels.bfloat16()).logits, made(pixel_values=pixels).logits
    torch.testing.assert_close(given.float(), expected, rtol=0, atol=0.1 * float(expected.abs().max()))


def test_what_cannot_be_merged_or_would_be_lost_is_refused(tmp_path):
    run = run_of(tmp_path / "run", {"kind": "mixture", "rank": 4})
    with pytest.raises(ModelError, match=r"adapter.activation is 'gelu', so the mixture is not linear and cannot be"):
        export_merged(run.folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(RunError, match="is not an empty folder; give a new one"):
        export_merged(run.folder, tmp_path / "run")
