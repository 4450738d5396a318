import copy
import json
import re
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from fedquilt.adapters.lora.inject import adapters, initial, inject, layout, load, trainable
from fedquilt.adapters.lora.peft_files import load_peft, save_peft
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.core.errors import ModelError, RunError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model
from fedquilt.models.locate import find_source

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

CASES = [
    ("tiny:vit", "image-classification", {}),
    ("tiny:vit?layers=12&width=16", "image-classification", {"rank_pattern": {"layers.1.attention.q_proj": 5}}),
    ("tiny:bert", "sequence-classification", {"rslora": True}),
    ("tiny:distilbert", "sequence-classification", {}),
    ("tiny:llama", "sequence-classification", {"alpha_pattern": {"model.layers.1.self_attn.v_proj": 24.0}}),
    ("tiny:llama", "causal-lm", {}),
    ("tiny:gemma3", "causal-lm", {}),
    ("tiny:gpt2", "causal-lm", {"rank_pattern": {"h.1.attn.c_attn": 1}, "rslora": True}),
    ("tiny:gpt2", "sequence-classification", {}),
]


def inputs(task):
    generator = torch.Generator().manual_seed(0)
    if task == "image-classification":
        return {"pixel_values": torch.randn(4, 1, 28, 28, generator=generator)}
    return {"input_ids": torch.randint(4, 200, (4, 9), generator=generator), "attention_mask": torch.ones(4, 9).long()}


def adapted(name, task, **values):
    """A base, and a copy of it with adapters and a head that do something; its layout, tensors and settings."""
    found = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
    base = copy.deepcopy(found.model)
    settings = LoraSettings(**{"rank": 3, "alpha": 12.0, "targets": found.targets} | values)
    inject(found.model, found.blocks, settings, (), found.head)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    generator = torch.Generator().manual_seed(1)
    params = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in initial(where, found.model)(Rng(1)).items()
    }
    load(trainable(found.model, where), params)
    return base, found, where, params, settings


def exported(folder, base, found, where, params, settings, task):
    return save_peft(folder, params, found.model, where, settings, base_name="base", task=task)


@pytest.mark.parametrize(("name", "task", "values"), CASES)
def test_peft_computes_the_same_logits_from_our_folder(tmp_path, name, task, values):
    base, found, where, params, settings = adapted(name, task, **values)
    folder = exported(tmp_path / "adapter", base, found, where, params, settings, task)
    ours, plain = found.model(**inputs(task)).logits, base(**inputs(task)).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of missing keys and of a wrong fan_in_fan_out
        theirs = PeftModel.from_pretrained(base, str(folder)).eval()
    torch.testing.assert_close(theirs(**inputs(task)).logits, ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.merge_and_unload()(**inputs(task)).logits, ours, rtol=0, atol=1e-5)
    assert float((ours - plain).abs().max()) > 0.01


@pytest.mark.parametrize(("name", "task", "values"), CASES)
def test_what_we_saved_comes_back_to_the_bit(tmp_path, name, task, values):
    base, found, where, params, settings = adapted(name, task, **values)
    folder = exported(tmp_path / "adapter", base, found, where, params, settings, task)
    again, told = load_peft(folder, where)
    assert again.keys() == params.keys()
    assert all(torch.equal(again[name], params[name]) for name in params)
    assert told == settings


@pytest.mark.parametrize(
    ("name", "task", "kind", "values"),
    [
        ("tiny:vit", "image-classification", None, {"modules_to_save": ["classifier"]}),
        ("tiny:bert", "sequence-classification", "SEQ_CLS", {"use_rslora": True}),
        ("tiny:llama", "causal-lm", "CAUSAL_LM", {"rank_pattern": {"layers.1.self_attn.q_proj": 2}}),
        ("tiny:gpt2", "sequence-classification", "SEQ_CLS", {"alpha_pattern": {"h.0.attn.c_attn": 1}}),
    ],
)
def test_we_compute_the_same_logits_from_what_peft_saved(tmp_path, name, task, kind, values):
    found = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=list(found.targets), task_type=kind, fan_in_fan_out="gpt2" in name, **values
    )
    theirs = get_peft_model(copy.deepcopy(found.model), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if "lora_B" in parameter_name or "modules_to_save" in parameter_name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path)
    params, settings = load_peft(tmp_path)
    inject(found.model, found.blocks, settings, (), found.head)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    params, _ = load_peft(tmp_path, where)
    load(trainable(found.model, where), params)
    torch.testing.assert_close(found.model(**inputs(task)).logits, theirs(**inputs(task)).logits, rtol=0, atol=1e-5)


def test_a_part_of_the_blocks_is_saved_by_full_paths_so_that_peft_adapts_no_other(tmp_path):
    base, found, where, params, settings = adapted("tiny:vit?layers=12&width=16", "image-classification")
    kept = {name: params[name] for name in (*where.names([1, 11]), *where.head)}
    for name, adapter in adapters(found.model).items():
        adapter.active = f"{name}.lora_A" in kept
    folder = exported(tmp_path / "adapter", base, found, where, kept, settings, "image-classification")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = PeftModel.from_pretrained(base, str(folder)).eval()
    ours = found.model(**inputs("image-classification")).logits
    torch.testing.assert_close(theirs(**inputs("image-classification")).logits, ours, rtol=0, atol=1e-5)
    assert sum(hasattr(module, "lora_A") for module in theirs.modules()) == 4


def test_a_frozen_fresh_head_goes_along_when_named(tmp_path):
    _, found, _, params, settings = adapted("tiny:vit", "image-classification")
    bare = layout(found.model, found.blocks, found.architecture)
    with pytest.raises(ModelError, match=r"'classifier.weight' is neither a low-rank factor nor part of the head"):
        save_peft(tmp_path / "a", params, found.model, bare, settings, base_name="b", task="image-classification")
    folder = save_peft(
        tmp_path / "a", params, found.model, bare, settings, base_name="b", task="image-classification", head=found.head
    )
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["classifier"]


def test_an_older_folder_is_replaced_whole_and_nothing_else_stays(tmp_path):
    base, found, where, params, settings = adapted("tiny:vit", "image-classification")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "stale.txt").write_text("old")
    exported(folder, base, found, where, params, settings, "image-classification")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    base, found, where, params, settings = adapted("tiny:vit", "image-classification")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write the adapter folder .*file/adapter.*choose another folder"):
        exported(tmp_path / "file" / "adapter", base, found, where, params, settings, "image-classification")


def test_tensors_that_do_not_go_together_are_not_saved(tmp_path):
    base, found, where, params, settings = adapted("tiny:vit", "image-classification")
    name = "vit.layers.0.attention.q_proj"

    def saved(params, settings=settings):
        exported(tmp_path / "adapter", base, found, where, params, settings, "image-classification")

    with pytest.raises(ModelError, match=f"module '{name}' has lora_A but not the other factor"):
        saved({key: value for key, value in params.items() if key != f"{name}.lora_B"})
    with pytest.raises(ModelError, match="has rank 3, but the settings say 4"):
        saved(params, LoraSettings(rank=4, alpha=12.0))
    with pytest.raises(ModelError, match=r"lora_A is \(3, 32\) and lora_B \(3, 32\)"):
        saved(params | {f"{name}.lora_B": params[f"{name}.lora_B"].T})
    with pytest.raises(ModelError, match=r"'vit.else.lora_A' is not a tensor of vit-2x32"):
        saved(params | {f"vit.else.{factor}": params[f"{name}.{factor}"] for factor in ("lora_A", "lora_B")})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path):
    base, found, where, params, settings = adapted("tiny:vit", "image-classification")
    return exported(tmp_path / "adapter", base, found, where, params, settings, "image-classification")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peft_type": "IA3"}, r"peft_type = 'IA3'; fedquilt reads plain LoRA"),
        ({"use_dora": True}, r"use_dora = True"),
        ({"bias": "all"}, r"bias = 'all'"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights = 'pissa', which changes the base too"),
        ({"r": 0}, r"adapter_config.json is wrong: adapter.rank is 0"),
        ({"r": 5}, r"has rank 3, but the settings say 5"),
        ({"lora_alpha": "much"}, r"adapter_config.json is wrong: could not convert string to float"),
    ],
)
def test_a_config_that_is_not_plain_lora_is_refused(folder, change, text):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=text):
        load_peft(folder)


def test_damaged_and_missing_files_are_told(folder, tmp_path):
    with pytest.raises(ModelError, match="there is no adapter folder"):
        load_peft(tmp_path / "nowhere")
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, text = load_file(weights), config.read_text()

    save_file(tensors | {"base_model.model.embed.lora_embedding_A": torch.zeros(2, 2)}, weights)
    with pytest.raises(ModelError, match=r"'base_model.model.embed.lora_embedding_A' is no LoRA factor"):
        load_peft(folder)
    first = "base_model.model.vit.layers.0.attention.q_proj.lora_A.weight"
    save_file({key: value for key, value in tensors.items() if key != first}, weights)
    with pytest.raises(ModelError, match=r"module 'vit.layers.0.attention.q_proj' has lora_B but not the other"):
        load_peft(folder)
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    with pytest.raises(ModelError, match=r"adapter_model.safetensors is damaged.*save it again"):
        load_peft(folder)
    config.write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config.json cannot be read"):
        load_peft(folder)
    config.write_text("[]")
    with pytest.raises(ModelError, match="holds no JSON object"):
        load_peft(folder)
    config.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "r"}))
    save_file(tensors, weights)
    with pytest.raises(ModelError, match=r"adapter_config.json has no 'r'"):
        load_peft(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"holds no adapter_model.safetensors; save the adapter again"):
        load_peft(folder)


def test_an_adapter_of_another_model_is_refused(folder):
    for name, text in (
        ("tiny:vit?width=64", r"tensor 'classifier.weight' is \(3, 32\), the model's is \(3, 64\)"),
        ("tiny:vit?layers=3", r"'vit.layers.2.attention.q_proj.lora_A' is missing \(vit-3x32\)"),
        ("tiny:vit?layers=1", r"'vit.layers.1.attention.q_proj.lora_A' is not in the model \(vit-1x32\)"),
    ):
        _, _, where, _, _ = adapted(name, "image-classification")
        with pytest.raises(ModelError, match=text):
            load_peft(folder, where)


@pytest.mark.parametrize("name", ["glyph-vit-8x48", "arith-llama"])
def test_an_adapter_of_a_cut_base_says_how_and_does_not_go_on_the_whole_one(tmp_path, name, monkeypatch):
    images = name.startswith("glyph")
    task = "image-classification" if images else "causal-lm"
    _, found, where, params, settings = adapted(f"{name}?layers=2", task)
    base = tmp_path / "base"
    shutil.copytree(find_source(name, False, 8).location, base)
    told = {"base_name": str(base), "task": task, "beyond": f"{found.blocks.path}.2"}
    told["classes"] = ["a", "b", "c"] if images else []
    folder = save_peft(tmp_path / "adapter", params, found.model, where, settings, **told)
    auto = AutoModelForImageClassification if images else AutoModelForCausalLM
    whole = auto.from_pretrained(base, **({"num_labels": 3, "ignore_mismatched_sizes": True} if images else {}))
    with pytest.raises(KeyError, match=rf"{found.blocks.path}\.2\."):
        PeftModel.from_pretrained(whole, str(folder))
    monkeypatch.chdir(folder)
    known = {}
    exec(re.search(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)[1], known)
    given = inputs(task) if images else {"input_ids": torch.randint(4, 20, (4, 9))}
    torch.testing.assert_close(
        known["model"].float().eval()(**given).logits, found.model(**given).logits, rtol=0, atol=1e-5
    )
