"""Quantised linear modules, against bitsandbytes' own functions and against the modules that they replace."""

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from fedquilt.adapters.lora.inject import adapters, inject
from fedquilt.adapters.lora.module import LoraLinear, LoraSettings, is_linear, is_transposed
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks
from fedquilt.models.hf import load_model
from fedquilt.models.quantization import QuantizedLinear, _bitsandbytes, missing_package, quantize
from fedquilt.models.trial_batch import example
from fedquilt.models.weights_digest import digest

SCHEMES = ["int8", "nf4"]
SHAPES = [(96, 64), (40, 33), (8, 8), (130, 128), (7, 9)]
MODELS = [
    ("tiny:vit?image=4&patch=2", "image-classification"),
    ("tiny:bert", "sequence-classification"),
    ("tiny:gpt2", "causal-lm"),
    ("tiny:llama", "causal-lm"),
]


def linear(shape, dtype=torch.float32):
    made = nn.Linear(shape[1], shape[0]).requires_grad_(False).to(dtype)
    for tensor in made.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=Rng(5).child(*tensor.shape).torch()))
    return made


def loaded(name, task, quantization="none", dtype=torch.float32, **options):
    classes = None if task == "causal-lm" else 3
    return load_model(name, task, num_classes=classes, rng=Rng(3), dtype=dtype, quantization=quantization, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nf4_is_that_of_bitsandbytes_to_the_bit(shape, dtype):
    library = _bitsandbytes()
    base = linear(shape, dtype)
    own = QuantizedLinear(base, "nf4", dtype)
    codes, state = library.quantize_4bit(base.weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(own.codes, codes)
    assert torch.equal(own.scale, state.absmax)
    assert torch.equal(own.outer_scale, state.state2.absmax)
    assert torch.equal(own.offset, state.offset)
    assert torch.equal(own.weight, library.dequantize_4bit(codes, state).view(shape))


def test_int8_rounds_to_the_nearest_of_255_steps_as_bitsandbytes_does():
    base = linear((96, 64))
    own = QuantizedLinear(base, "int8", torch.float32)
    step = base.weight.abs().amax(1, keepdim=True) / 127
    assert ((own.weight - base.weight).abs() <= 0.5001 * step).all()
    codes, scales, _ = _bitsandbytes().int8_vectorwise_quant(base.weight.half())
    assert (own.codes.int() - codes.int()).abs().max() <= 1  # bitsandbytes rounds the weight to float16 first
    torch.testing.assert_close(own.scale * 127, scales, rtol=1e-3, atol=0)


@pytest.mark.parametrize("quantization", SCHEMES)
def test_a_weight_of_zeros_stays_zero(quantization):
    base = linear((8, 64))
    base.weight[:4] = 0
    assert not QuantizedLinear(base, quantization, torch.float32).weight[:4].any()


@pytest.mark.parametrize("quantization", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pass_is_that_of_a_linear_module_with_the_dequantised_weight(quantization, dtype):
    own = QuantizedLinear(linear((24, 64), dtype), quantization, dtype)
    plain = linear((24, 64), dtype)
    plain.weight.copy_(own.weight)
    x = torch.randn(2, 5, 64, generator=Rng(1).torch()).to(dtype).requires_grad_(True)
    made, expected = own(x), plain(x)
    assert made.dtype == dtype
    assert torch.equal(made, expected)
    grad = torch.randn(made.shape, generator=Rng(2).torch()).to(dtype)
    assert torch.equal(torch.autograd.grad(made, x, grad)[0], torch.autograd.grad(expected, x, grad)[0])


@pytest.mark.parametrize("quantization", SCHEMES)
def test_autocast_decides_the_type_as_for_a_linear_module(quantization):
    own = QuantizedLinear(linear((24, 64)), quantization, torch.float32)
    x = torch.randn(3, 64, generator=Rng(1).torch(), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        made = own(x)
    assert made.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(made.float().sum(), x)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, own.weight.sum(0).expand(3, 64), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("quantization", SCHEMES)
@pytest.mark.parametrize(("name", "task"), MODELS)
def test_the_linear_modules_of_the_blocks_are_quantised_and_nothing_else(name, task, quantization):
    whole, small = loaded(name, task), loaded(name, task, quantization)
    linears = {own for own, module in whole.model.named_modules() if is_linear(module)}
    inside = {own for own in linears if whole.blocks.depth(own) is not None}
    made = {own for own, module in small.model.named_modules() if isinstance(module, QuantizedLinear)}
    assert made == inside != linears
    state = whole.model.state_dict()
    for own, tensor in small.model.state_dict().items():
        if own.rpartition(".")[0] not in made or own.endswith(".bias"):
            assert torch.equal(tensor, state[own]), own
    for own in made:
        base, module = whole.model.get_submodule(own), small.model.get_submodule(own)
        assert module.weight.shape == base.weight.shape
        assert is_transposed(module) == is_transposed(base)
        assert is_linear(module)
    assert (small.targets, small.digest != whole.digest) == (whole.targets, True)
    with torch.no_grad():
        expected = whole.model(**example(whole.model, whole.prepare)).logits
        given = small.model(**example(small.model, small.prepare)).logits
    apart = float((given - expected).norm() / (expected - expected.mean()).norm())
    assert 0 < apart < {"int8": 0.05, "nf4": 0.4}[quantization]


@pytest.mark.parametrize(("quantization", "most"), [("int8", 1.07), ("nf4", 0.52)])
def test_the_meta_device_knows_the_bytes(quantization, most):
    name = "tiny:llama?width=64"
    real, shape = loaded(name, "causal-lm", quantization), loaded(name, "causal-lm", quantization, meta=True)
    own, planned = ({n: (p.shape, p.dtype) for n, p in found.model.named_parameters()} for found in (real, shape))
    assert own == planned
    modules = [module for module in real.model.modules() if isinstance(module, QuantizedLinear)]
    stored = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    assert stored / sum(module.in_features * module.out_features for module in modules) <= most
    with torch.device("meta"):
        assert shape.model(**example(shape.model, shape.prepare)).logits.shape == (2, 8, 260)


@pytest.mark.parametrize("quantization", SCHEMES)
def test_training_adapters_leaves_the_bytes_of_the_base_and_merging_dequantises(quantization):
    found = loaded("tiny:llama?width=64", "causal-lm", quantization, torch.bfloat16)
    before = digest(found.model)
    inject(found.model, found.blocks, LoraSettings(2, 2.0), found.targets)
    trained = [tensor for one in adapters(found.model).values() for tensor in (one.lora_A, one.lora_B)]
    for number, tensor in enumerate(trained):
        tensor.requires_grad_(True).data.normal_(0, 0.1, generator=Rng(4).child(number).torch())
    batch = example(found.model, found.prepare)
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for _ in range(2):
        found.model.train()(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    bare = {n.replace(".base.", "."): t for n, t in found.model.state_dict().items() if ".lora_" not in n}
    twin = loaded("tiny:llama?width=64", "causal-lm", quantization, torch.bfloat16)
    assert twin.digest == before
    assert bare.keys() == twin.model.state_dict().keys()
    assert all(torch.equal(tensor, bare[name]) for name, tensor in twin.model.state_dict().items())
    found.model.eval()
    for adapter in adapters(found.model).values():
        x = torch.randn(3, adapter.base.in_features, generator=Rng(6).torch())
        torch.testing.assert_close(adapter(x), x @ adapter.merged().float().T, rtol=0.02, atol=0.02)


def test_none_changes_nothing_and_a_wrapped_module_is_no_reason_to_fail():
    found = loaded("tiny:llama", "causal-lm")
    quantize(found.model, found.blocks, "none", torch.float32)
    assert digest(found.model) == found.digest
    wrapped = LoraLinear(QuantizedLinear(linear((8, 64)), "int8", torch.float32), LoraSettings(2, 2.0))
    assert wrapped(torch.ones(1, 64)).shape == (1, 8)


def test_without_bitsandbytes_only_nf4_lacks_something(monkeypatch):
    assert [missing_package(quantization) for quantization in ("none", *SCHEMES)] == ["", "", ""]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [missing_package(quantization) for quantization in ("none", *SCHEMES)] == ["", "", "bitsandbytes"]


@pytest.mark.slow
def test_bitsandbytes_is_imported_without_a_word():
    line = "from fedquilt.models.quantization import _bitsandbytes; _bitsandbytes()"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_level_of_its_log_is_as_before():
    _bitsandbytes.cache_clear()
    logging.getLogger("bitsandbytes").setLevel(logging.WARNING)
    _bitsandbytes()
    assert logging.getLogger("bitsandbytes").level == logging.WARNING


class Router(nn.Linear):
    """A module that computes more than a linear map, as the routers of some mixtures of experts do."""

    def forward(self, x):
        return super().forward(x).softmax(-1)


@pytest.mark.parametrize("quantization", SCHEMES)
def test_a_module_that_computes_more_than_a_linear_map_stays(quantization):
    block = nn.ModuleDict({"route": Router(8, 4), "value": nn.Linear(8, 8)})
    model = nn.ModuleDict({"blocks": nn.ModuleList([block]), "head": nn.Linear(8, 2)})
    quantize(model, Blocks("blocks", 1), quantization, torch.float32)
    kinds = {name: type(module) for name, module in model.named_modules() if is_linear(module)}
    assert kinds == {"blocks.0.route": Router, "blocks.0.value": QuantizedLinear, "head": nn.Linear}
