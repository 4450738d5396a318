"""Bases in 16 bits: what is rounded and what is not, against the same model in float32 and against PEFT."""

import copy

import peft
import pytest
import torch
import transformers

from fedquilt.adapters.lora.inject import adapters, inject
from fedquilt.adapters.lora.module import merged_weights
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.client.task import scoring_of
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model
from fedquilt.models.precision import base_dtype
from fedquilt.models.trial_batch import example

IMAGES, SENTENCES, CAUSAL = "image-classification", "sequence-classification", "causal-lm"
MODELS = [
    ("tiny:vit?image=4&patch=2", IMAGES),
    *((f"tiny:{kind}", SENTENCES) for kind in ("bert", "distilbert", "llama", "gpt2")),
    *((f"tiny:{kind}", CAUSAL) for kind in ("gpt2", "gemma3", "qwen3")),
]
SHORT = [torch.bfloat16, torch.float16]


def loaded(name, task, dtype, **options):
    return load_model(str(name), task, num_classes=None if task == CAUSAL else 3, rng=Rng(3), dtype=dtype, **options)


@pytest.mark.parametrize(("name", "task"), MODELS)
@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_the_base_is_the_float32_base_rounded_and_the_head_is_not_rounded(name, task, dtype):
    whole, short = loaded(name, task, torch.float32), loaded(name, task, dtype)
    state = whole.model.state_dict()
    for own, tensor in short.model.state_dict().items():
        expected = state[own] if own in short.head or not state[own].is_floating_point() else state[own].to(dtype)
        assert torch.equal(tensor, expected), own
        assert tensor.dtype == expected.dtype, own
    assert short.digest != whole.digest
    for own, buffer in short.model.named_buffers():  # frequencies of rotary positions, which 16 bits would move
        assert torch.equal(buffer, whole.model.get_buffer(own)), own
    batch = example(whole.model, whole.prepare)
    with torch.no_grad():
        expected, made = whole.model(**batch).logits, short.model(**example(short.model, short.prepare)).logits
    assert made.dtype == (dtype if task == CAUSAL else torch.float32)
    tolerance = 8 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(made.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "stored", "expected"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (None, torch.float16, torch.bfloat16),
        (None, torch.bfloat16, torch.bfloat16),
        (None, torch.float32, torch.float32),
        (None, None, torch.float32),
    ],
)
def test_the_type_follows_the_stored_weights_only_if_it_is_open(dtype, stored, expected):
    assert base_dtype(dtype, transformers.LlamaConfig(dtype=stored)) == expected


def test_weights_stored_in_16_bits_are_read_as_they_are(tmp_path):
    made = loaded("tiny:llama", CAUSAL, torch.bfloat16)
    made.save(tmp_path)
    again = loaded(tmp_path, CAUSAL, None)
    assert again.digest == made.digest
    assert loaded(tmp_path, CAUSAL, torch.float32).model.dtype == torch.float32
    assert loaded(tmp_path, CAUSAL, None, meta=True).model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "task", "targets"),
    [
        ("tiny:llama", CAUSAL, ("q_proj", "down_proj")),
        ("tiny:gpt2", CAUSAL, ("c_attn",)),
        ("tiny:bert", SENTENCES, ("query", "output.dense")),
    ],
)
def test_an_adapter_on_a_bfloat16_base_computes_what_pefts_does(name, task, targets):
    found = loaded(name, task, torch.bfloat16)
    settings = LoraSettings(rank=2, alpha=6.0, targets=targets)
    other = copy.deepcopy(found.model)
    inject(found.model, found.blocks, settings, targets, found.head)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=list(targets), fan_in_fan_out="gpt2" in name)
    twin = peft.get_peft_model(other, config)
    for path, adapter in adapters(found.model).items():
        draw = Rng(1).child(path).torch()
        adapter.set_factor("lora_A", torch.randn(adapter.lora_A.shape, generator=draw))
        adapter.set_factor("lora_B", torch.randn(adapter.lora_B.shape, generator=draw))
        own = twin.base_model.model.get_submodule(path)
        assert own.lora_A["default"].weight.dtype == adapter.lora_A.dtype == torch.float32
        own.lora_A["default"].weight.data.copy_(adapter.lora_A)
        own.lora_B["default"].weight.data.copy_(adapter.lora_B)
    batch = example(found.model, found.prepare)
    with torch.no_grad():
        assert torch.equal(found.model(**batch).logits, twin(**batch).logits)


@pytest.mark.parametrize(("name", "task"), MODELS)
def test_gradients_are_float32_and_near_those_of_the_float32_base(name, task):
    grads = {}
    for dtype in (torch.float32, torch.bfloat16):
        found = loaded(name, task, dtype)
        before = {own: tensor.clone() for own, tensor in found.model.state_dict().items()}
        inject(found.model, found.blocks, LoraSettings(2, 2.0), found.targets, found.head)
        for path, adapter in adapters(found.model).items():
            adapter.set_factor("lora_A", torch.randn(adapter.lora_A.shape, generator=Rng(1).child(path).torch()))
            adapter.lora_A.requires_grad_(True)
            adapter.lora_B.requires_grad_(True)
        batch = example(found.model, found.prepare)
        logits = found.model(**batch).logits
        labels = batch["input_ids"].long() if task == CAUSAL else torch.tensor([0, 2])
        scoring_of(task).loss(logits, labels).sum().backward()
        trained = [adapter.lora_B.grad for adapter in adapters(found.model).values()]
        assert {grad.dtype for grad in trained} == {torch.float32}
        grads[dtype] = torch.cat([grad.flatten() for grad in trained])
        after = found.model.state_dict()
        for own, tensor in before.items():
            module, _, leaf = own.rpartition(".")
            assert torch.equal(after.get(own, after.get(f"{module}.base.{leaf}")), tensor)
    apart = (grads[torch.bfloat16] - grads[torch.float32]).norm() / grads[torch.float32].norm()
    assert float(grads[torch.float32].norm()) > 0
    assert float(apart) < 0.05


def test_merged_weights_are_rounded_once():
    found = loaded("tiny:llama", CAUSAL, torch.bfloat16)
    inject(found.model, found.blocks, LoraSettings(2, 2.0), found.targets)
    for path, adapter in adapters(found.model).items():
        for factor in ("lora_A", "lora_B"):
            drawn = torch.randn(getattr(adapter, factor).shape, generator=Rng(2).child(path, factor).torch())
            adapter.set_factor(factor, 0.3 * drawn)
    for name, weight in merged_weights(adapters(found.model)).items():
        adapter = found.model.get_submodule(name.removesuffix(".weight"))
        exact = adapter.base.weight.double() + 1.0 * adapter.lora_B.double() @ adapter.lora_A.double()
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(weight.double(), exact, rtol=2**-8, atol=1e-6)
