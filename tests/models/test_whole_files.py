"""A whole model that is written again says of itself what its files said, but for its weights and classes."""

import json

import pytest
import torch
import transformers

from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model
from fedquilt.models.hf_files import config_from, read_tokenizer
from fedquilt.models.locate import Source

CAUSAL, TEXT, IMAGES = "causal-lm", "sequence-classification", "image-classification"


def base(folder, dtype=torch.float32, kind="llama", task=CAUSAL, **tokens):
    made = load_model(f"tiny:{kind}", task, num_classes=None if task == CAUSAL else 3, rng=Rng(0)).model
    made.config.use_cache = True
    made.generation_config = transformers.GenerationConfig()
    made.to(dtype).save_pretrained(folder)
    if task == CAUSAL:
        transformers.GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=2).save_pretrained(
            folder
        )
    tokenizer = read_tokenizer(Source("tiny", values={}), config_from({"model_type": kind}), {})
    for key, value in tokens.items():
        setattr(tokenizer, key, value)
    tokenizer.save_pretrained(folder)
    return folder


def told(folder, name):
    return json.loads((folder / name).read_text("utf-8"))


def written(folder, out, task=CAUSAL, **options):
    found = load_model(str(folder), task, num_classes=None if task == CAUSAL else 3, rng=Rng(0), **options)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter += 0.001
    before = vars(found.model).get("generation_config"), found.model.config.to_dict()
    found.save(out)
    after = vars(found.model).get("generation_config"), found.model.config.to_dict()
    assert after == before, "training goes on as it was"
    return found


def test_a_language_model_writes_and_caches_as_its_files_said(tmp_path):
    folder = base(tmp_path / "base", pad_token=None, padding_side="left")
    found = written(folder, tmp_path / "out")
    assert not found.model.config.use_cache
    assert not found.model.generation_config.do_sample
    for name in ("generation_config.json", "config.json"):
        assert told(tmp_path / "out", name) == told(folder, name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", None)
    assert told(tmp_path / "out", "tokenizer_config.json").items() >= told(folder, "tokenizer_config.json").items()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_the_type_of_their_files(tmp_path, dtype):
    folder = base(tmp_path / "base", dtype)
    found = written(folder, tmp_path / "out")
    assert told(tmp_path / "out", "config.json") == told(folder, "config.json")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    for name, parameter in found.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(again.get_parameter(name), parameter.to(dtype))


def test_a_number_that_the_files_type_cannot_hold_keeps_its_own(tmp_path):
    folder = base(tmp_path / "base", torch.float16)
    found = load_model(str(folder), CAUSAL, num_classes=None, rng=Rng(0))
    with torch.no_grad():
        found.model.lm_head.weight[0, 0] = 1e6
    found.save(tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert float(again.lm_head.weight[0, 0].detach()) == 1e6


def test_tied_weights_stay_one(tmp_path):
    made = load_model("tiny:gpt2", CAUSAL, num_classes=None, rng=Rng(0)).model
    made.half().save_pretrained(tmp_path / "base")
    read_tokenizer(Source("tiny", values={}), config_from({"model_type": "gpt2"}), {}).save_pretrained(
        tmp_path / "base"
    )
    written(tmp_path / "base", tmp_path / "out")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("base", "out")]
    assert sizes[0] == sizes[1]


def test_a_classifier_knows_its_classes_and_its_padding(tmp_path):
    folder = base(tmp_path / "base", kind="gpt2", task=TEXT, pad_token=None)
    written(folder, tmp_path / "out", TEXT, classes=("ant", "bee", "cow"))
    config = told(tmp_path / "out", "config.json")
    assert config["id2label"] == {"0": "ant", "1": "bee", "2": "cow"}
    assert config["label2id"] == {"ant": 0, "bee": 1, "cow": 2}
    assert config["pad_token_id"] == 2
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "</s>"


def test_an_image_models_preprocessor_goes_along(tmp_path):
    made = load_model("tiny:vit?image=8&patch=4", IMAGES, num_classes=3, rng=Rng(0)).model
    made.config.problem_type = "multi_label_classification"
    made.save_pretrained(tmp_path / "base")
    wanted = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], "size": {"height": 8, "width": 8}}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(wanted), "utf-8")
    written(tmp_path / "base", tmp_path / "out", IMAGES, classes=("0", "1", "2"))
    assert told(tmp_path / "out", "preprocessor_config.json") == wanted
    assert told(tmp_path / "out", "config.json").get("problem_type") is None
