"""What a run file says of its frozen bases, and what is refused before a model is loaded."""

import pytest
import torch

from fedquilt.config.groups import parts
from fedquilt.config.load import load
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.experiment.bases import base_dtype, has_bfloat16, odd_bases, other_weights
from fedquilt.experiment.check import check
from fedquilt.experiment.models import Form, load_all
from fedquilt.experiment.models import load as load_base
from fedquilt.experiment.plan import plan
from fedquilt.models.hf_files import config_from, set_attention
from fedquilt.models.locate import Source

FILE = {
    "model": {"name": "tiny:llama?layers=2&width=16", "task": "causal-lm"},
    "data": {"source": "arithmetic:blank?train=60&test=6"},
    "clients": {"budgets": [2], "shares": "1"},
    "training": {"batch_size": 4},
    "method": {"name": "fedit"},
}
TUNED = ["adapter.kind=full", "method.name=full"]


def config(*overrides):
    return load(FILE, overrides)[0]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["model.dtype=bfloat16", *TUNED], "model.dtype = 'bfloat16': adapter.kind = 'full' trains the base's own"),
        (["model.dtype=float16"], "model.dtype = 'float16': small gradients would vanish in it without loss scaling"),
        (["model.dtype=float32", *TUNED], ""),
        (["model.dtype=bfloat16", "training.precision=bf16"], ""),
    ],
)
def test_a_type_that_does_not_suit_what_is_trained_is_refused(overrides, text):
    found = odd_bases(parts(config(*overrides)))
    assert [problem.startswith(text) for problem in found] == [True] * bool(text)
    assert all(problem in check(config(*overrides)) for problem in found)


def test_the_group_that_says_so_is_named():
    group = {"label": "a", "budget": 2}
    model = {**FILE["model"], "dtype": "float16"}
    tables = {**FILE, "clients": {}, "groups": [group, {"label": "b", "budget": 1, "model": model}]}
    (problem,) = odd_bases(parts(load(tables)[0]))
    assert problem.startswith("groups[1].model.dtype = 'float16'")


@pytest.mark.parametrize(
    ("device", "here", "hardware", "expected"),
    [
        ("cpu", True, True, False),
        ("mps", True, True, False),
        ("auto", False, False, False),
        ("cuda", False, False, True),
        ("cuda:1", True, True, True),
        ("auto", True, True, True),
        ("auto", True, False, False),
    ],
)
def test_auto_is_float32_but_on_gpus_with_bfloat16(monkeypatch, device, here, hardware, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hardware)
    assert has_bfloat16(device) == expected
    assert base_dtype(config(f"device={device}")) == (None if expected else torch.float32)
    assert base_dtype(config(f"device={device}", *TUNED)) == torch.float32
    assert base_dtype(config(f"device={device}", "model.dtype=bfloat16")) == torch.bfloat16


def test_a_plan_counts_weights_in_their_type():
    (whole, *_), (short, *_) = plan(config()), plan(config("model.dtype=bfloat16"))
    adapters = whole.trained_parameters * 4
    assert short.weight_bytes - adapters == (whole.weight_bytes - adapters) // 2
    assert (short.bytes_up, short.gradient_bytes) == (whole.bytes_up, whole.gradient_bytes)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["model.quantization=int8", *TUNED],
            "model.quantization = 'int8': adapter.kind = 'full' trains the base's own",
        ),
        (["model.quantization=nf4"], "model.quantization = 'nf4': needs bitsandbytes, which is not installed; set"),
        (["model.quantization=int8"], ""),
        (["model.attention=flash_attention_2", "device=cpu"], "model.attention = 'flash_attention_2': runs on CUDA"),
        (["model.attention=flash_attention_2", "device=cuda"], "model.attention = 'flash_attention_2': needs the pack"),
    ],
)
def test_what_a_package_or_a_device_lacks_is_said_before_anything_is_loaded(monkeypatch, overrides, text):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = odd_bases(parts(config(*overrides)))
    assert [problem.startswith(text) for problem in found] == [True] * bool(text)


def test_flash_attention_wants_16_bits(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    asked = ["model.attention=flash_attention_2", "device=cuda", "training.precision=fp32"]
    (problem,) = odd_bases(parts(config(*asked, "model.dtype=float32")))
    assert problem.startswith("model.attention = 'flash_attention_2': computes in 16 bits only")
    assert odd_bases(parts(config(*asked, "model.dtype=bfloat16"))) == []


def test_flash_attention_would_mix_packed_examples(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    asked = ["model.attention=flash_attention_2", "device=cuda", "model.dtype=bfloat16", "training.packing=true"]
    (problem,) = odd_bases(parts(config(*asked)))
    assert problem.startswith("model.attention = 'flash_attention_2': would mix the examples of training.packing")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_chosen_attention_is_the_models(attention):
    loaded = load_base(config(f"model.attention={attention}"), Form(), Rng(1))
    assert loaded.model.config._attn_implementation == attention
    assert load_base(config(), Form(), Rng(1)).model.config._attn_implementation == "sdpa"


def test_an_attention_that_the_model_lacks_is_refused():
    with pytest.raises(ModelError, match=r"model.attention = 'sdpa': transformers has no such attention for a deberta"):
        set_attention(config_from({"model_type": "deberta"}), Source("x"), "sequence-classification", "sdpa")


@pytest.mark.parametrize(("quantization", "share"), [("int8", 0.27), ("nf4", 0.14)])
def test_a_plan_counts_quantised_weights(quantization, share):
    wide = {**FILE, "model": {**FILE["model"], "name": "tiny:llama?layers=8&width=128"}}
    (whole, *_), (small, *_) = plan(load(wide)[0]), plan(load(wide, [f"model.quantization={quantization}"])[0])
    ends = 2 * 260 * 128 * 4  # the embeddings
    assert (small.model_bytes - ends) / (whole.model_bytes - ends) < share
    assert whole.weight_bytes - small.weight_bytes == whole.model_bytes - small.model_bytes


def test_weights_of_another_type_are_explained_by_the_device():
    text = "model.name = 'tiny:llama?layers=2&width=16' does not have the weights that the run began with"
    assert other_weights([config("device=cpu")], "cpu") == text
    assert other_weights([config("device=cpu", "model.dtype=bfloat16")], "cuda:0") == text
    why = " (their type follows the device, with model.dtype = 'auto': 'cuda:0' then, 'cpu' here)"
    assert other_weights([config("device=cpu")], "cuda:0") == text + why


@pytest.mark.parametrize("overrides", [{}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "nf4"}])
def test_groups_with_one_base_share_its_memory(overrides):
    tables = {**FILE, "model": {**FILE["model"], **overrides}, "clients": {}}
    tables["groups"] = [{"label": str(rank), "budget": 2, "adapter": {"rank": rank}} for rank in (2, 4)]
    groups = parts(load(tables)[0])
    one, other = load_all(groups, dict.fromkeys(range(2), Form()), Rng(1))
    assert one is not other
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(own.data_ptr() == same.data_ptr() for own, same in pairs)
    (twin, again) = load_all([groups[0], groups[0]], {0: Form()}, Rng(1))
    assert twin is again
