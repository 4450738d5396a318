"""Mixtures in folders, and back into models."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedquilt import load_adapter
from fedquilt.adapters.lora.inject import inject, layout, trainable
from fedquilt.adapters.lora.peft_files import save_peft
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.mixture.files import CONFIG, TENSORS, read_mixture, save_mixture
from fedquilt.adapters.mixture.inject import inject_mixture, mixture_layout, mixtures
from fedquilt.adapters.mixture.settings import MixtureSettings
from fedquilt.adapters.sites import BANK
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model

SETTINGS = MixtureSettings(rank=3, branches=2, num_slots=2, gate="token", placement="parallel")
MODELS = [
    ("tiny:vit", "image-classification"),
    ("tiny:bert", "sequence-classification"),
    ("tiny:llama", "causal-lm"),
    ("tiny:gpt2", "sequence-classification"),
]


def bare(name, task):
    return load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))


def drawn(shapes):
    generator = torch.Generator().manual_seed(4)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved(folder, name="tiny:vit", task="image-classification", settings=SETTINGS):
    """A folder with a mixture of random values, the model with these values in it, and the values."""
    found = bare(name, task)
    inject_mixture(found.model, found.blocks, settings)
    where = mixture_layout(found.model, found.blocks, found.architecture, found.head)
    params = drawn(where.shapes)
    save_mixture(folder, params, where, settings, base_name=name, task=task, head=found.head)
    with torch.no_grad():
        for key, parameter in trainable(found.model, where).items():
            parameter.copy_(params[key])
    return found, params


def inputs(task):
    generator = torch.Generator().manual_seed(0)
    if task == "image-classification":
        return {"pixel_values": torch.randn(2, 1, 28, 28, generator=generator)}
    ids = torch.randint(4, 200, (2, 9), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones(2, 9).long()}


@pytest.mark.parametrize(("name", "task"), MODELS)
@pytest.mark.parametrize("gate", ["uniform", "static", "token"])
def test_a_loaded_mixture_computes_what_the_saved_one_did(tmp_path, name, task, gate):
    found, params = saved(tmp_path / "a", name, task, replace(SETTINGS, gate=gate))
    with torch.no_grad():
        expected = found.model(**inputs(task)).logits
        model = bare(name, task).model
        before = model(**inputs(task)).logits
        assert load_adapter(model, tmp_path / "a") is model
        assert torch.equal(model(**inputs(task)).logits, expected)
    assert not torch.equal(before, expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    back = read_mixture(tmp_path / "a")
    assert back.settings == replace(SETTINGS, gate=gate)
    assert back.params.keys() == params.keys()
    assert all(torch.equal(back.params[key], value) for key, value in params.items())
    assert set(back.head) == set(found.head)


def test_a_folder_of_plain_lora_is_loaded_too(tmp_path):
    found = bare("tiny:bert", "sequence-classification")
    settings = LoraSettings(rank=2, alpha=4.0, targets=found.targets)
    inject(found.model, found.blocks, settings, head=found.head)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    params = drawn(where.shapes)
    told = {"base_name": "tiny:bert", "task": "sequence-classification", "head": found.head}
    save_peft(tmp_path / "a", params, found.model, where, settings, **told)
    with torch.no_grad():
        for key, parameter in trainable(found.model, where).items():
            parameter.copy_(params[key])
        model = load_adapter(bare("tiny:bert", "sequence-classification").model, tmp_path / "a")
        words = inputs("sequence-classification")
        assert torch.equal(model(**words).logits, found.model(**words).logits)
    other = bare("tiny:bert?width=16", "sequence-classification").model
    with pytest.raises(ModelError, match=r"the model's is .* the adapter is of another model"):
        load_adapter(other, tmp_path / "a")


def test_another_model_is_refused_and_left_as_it_was(tmp_path):
    saved(tmp_path / "a")
    deeper, wider = bare("tiny:vit?layers=3", "image-classification"), bare("tiny:vit?width=16", "image-classification")
    with pytest.raises(ModelError, match="is of a model of 2 blocks, and this ViTForImageClassification has 3"):
        load_adapter(deeper.model, tmp_path / "a")
    with pytest.raises(ModelError, match=r"tensor '.*' is \(3, 32\), the model's is \(3, 16\)"):
        load_adapter(wider.model, tmp_path / "a")
    assert not mixtures(wider.model)
    assert not hasattr(wider.model, BANK)
    words = bare("tiny:llama", "causal-lm").model
    with pytest.raises(ModelError, match=r"the head's tensor 'classifier.bias' is not in LlamaForCausalLM"):
        load_adapter(words, tmp_path / "a")


def _told(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _tensors(folder, change):
    save_file(change(load_file(folder / TENSORS)), folder / TENSORS)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / TENSORS).unlink(), r"holds no adapter.safetensors; export the adapter again"),
        (lambda folder: (folder / TENSORS).write_bytes(b"x" * 40), r"adapter.safetensors is damaged"),
        (lambda folder: (folder / CONFIG).write_text("{"), r"fedquilt_adapter.json cannot be read"),
        (lambda folder: (folder / CONFIG).write_text("[]"), r"holds no JSON object"),
        (lambda folder: _told(folder, version=2), r"version 2; this fedquilt reads 'fedquilt-mixture', version 1"),
        (lambda folder: _told(folder, settings={"rank": 3}), r"fedquilt_adapter.json is wrong: 'sites'"),
        (lambda folder: _told(folder, head=["nothing.weight"]), r"the head's tensor 'nothing.weight' is not in"),
        (lambda folder: _tensors(folder, lambda t: dict(list(t.items())[1:])), r"tensor '.*' is missing"),
        (lambda folder: _tensors(folder, lambda t: {**t, "odd": torch.ones(2)}), r"tensor 'odd' is not in the model"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(tmp_path, damage, told):
    saved(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(ModelError, match=told):
        load_adapter(bare("tiny:vit", "image-classification").model, tmp_path / "a")


def test_no_folder_is_told():
    with pytest.raises(ModelError, match="there is no adapter folder nowhere"):
        load_adapter(bare("tiny:vit", "image-classification").model, "nowhere")


def test_what_is_saved_must_be_whole_and_fit(tmp_path):
    found, params = saved(tmp_path / "a")
    where = mixture_layout(found.model, found.blocks, found.architecture, found.head)
    told = {"base_name": "x", "task": "image-classification", "head": found.head}
    first = next(iter(params))
    for wrong, message in (
        ({name: value for name, value in params.items() if name != first}, "is missing; a mixture is saved whole"),
        ({**params, "odd": torch.ones(1)}, "'odd' is not a tensor of"),
        ({**params, first: torch.ones(2, 2)}, r"is \(2, 2\), not"),
    ):
        with pytest.raises(ModelError, match=message):
            save_mixture(tmp_path / "b", wrong, where, SETTINGS, **told)
    assert not (tmp_path / "b").exists()
