"""DoRA: what PEFT computes, for every orientation and dtype of the base, and what the paper's equation says."""

import copy
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedquilt.adapters.lora.dora import DoraLinear, unchanging
from fedquilt.adapters.lora.inject import adapters, all_linear, initial, inject, layout, load, remove, trainable
from fedquilt.adapters.lora.kind import LORA
from fedquilt.adapters.lora.peft_files import load_peft, save_peft
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model
from fedquilt.models.quantization import QuantizedLinear

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in base:UserWarning"),
]

CASES = [
    ("tiny:vit", "image-classification"),
    ("tiny:bert", "sequence-classification"),
    ("tiny:llama", "causal-lm"),
    ("tiny:gpt2", "sequence-classification"),
]


def inputs(task):
    generator = torch.Generator().manual_seed(0)
    if task == "image-classification":
        return {"pixel_values": torch.randn(4, 1, 28, 28, generator=generator)}
    return {"input_ids": torch.randint(4, 200, (4, 9), generator=generator), "attention_mask": torch.ones(4, 9).long()}


def filled(base, **values) -> DoraLinear:
    layer = DoraLinear(base, LoraSettings(**{"rank": 3, "alpha": 6.0, "use_dora": True} | values), "layer")
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_()
        layer.lora_magnitude_vector.mul_(torch.linspace(0.5, 1.5, len(layer.lora_magnitude_vector)))
    return layer


def adapted(name, task, **values):
    """A base, and a copy of it with DoRA adapters that do something; its layout, tensors and settings."""
    found = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
    base = copy.deepcopy(found.model)
    targets = all_linear(found.model, found.blocks)  # of BERT by their full paths, as its pooler is called as they are
    settings = LoraSettings(**{"rank": 3, "alpha": 12.0, "targets": targets, "use_dora": True} | values)
    inject(found.model, found.blocks, settings, (), found.head)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    generator = torch.Generator().manual_seed(1)
    params = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in initial(where, found.model)(Rng(1)).items()
    }
    load(trainable(found.model, where), params)
    return base, found, where, params, settings


@pytest.mark.parametrize(
    "make", [partial(nn.Linear, 6, 4), partial(Conv1D, 4, 6), partial(nn.Linear, 6, 4, bias=False)]
)
def test_the_weight_is_the_magnitude_times_the_direction(make):
    torch.manual_seed(0)
    base = make()
    layer = filled(base)
    weight = base.weight if isinstance(base, nn.Linear) else base.weight.T
    rows = weight + 2.0 * layer.lora_B @ layer.lora_A
    expected = layer.lora_magnitude_vector.unsqueeze(1) * rows / rows.norm(dim=1, keepdim=True)
    x = torch.randn(5, 7, 6)
    bias = 0 if base.bias is None else base.bias
    torch.testing.assert_close(layer(x), x @ expected.T + bias)
    merged = copy.deepcopy(base)
    with torch.no_grad():
        merged.weight.copy_(layer.merged())
    torch.testing.assert_close(merged(x), layer(x))


def test_a_new_adapter_changes_no_bit_and_its_magnitude_is_the_norm_of_the_rows():
    base = nn.Linear(6, 4)
    layer = DoraLinear(base, LoraSettings(rank=3, alpha=6.0))
    with torch.no_grad():
        layer.lora_A.normal_()
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), base(x))
    torch.testing.assert_close(layer.lora_magnitude_vector, base.weight.norm(dim=1))
    layer.active = False
    with torch.no_grad():
        layer.lora_B.normal_()
    assert torch.equal(layer(x), base(x))


def test_a_row_of_zeros_stays_one():
    base = nn.Linear(6, 4)
    nn.init.zeros_(base.weight)
    layer = DoraLinear(base, LoraSettings(rank=3, alpha=6.0))
    layer.requires_grad_(True)
    x = torch.randn(5, 6)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, base(x))
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())
    assert bool(layer.delta().isfinite().all())


def peft_of(base: nn.Module, layer: DoraLinear, dropout: float = 0.0):
    """PEFT's DoRA around the same base, with the layer's tensors."""
    model = nn.Sequential()
    model.add_module("layer", copy.deepcopy(base))
    config = LoraConfig(
        r=3, lora_alpha=6, use_dora=True, target_modules=["layer"], lora_dropout=dropout, init_lora_weights=True
    )
    theirs = get_peft_model(model, config)
    own = theirs.base_model.model.layer
    with torch.no_grad():
        own.lora_A["default"].weight.copy_(layer.lora_A)
        own.lora_B["default"].weight.copy_(layer.lora_B)
        own.lora_magnitude_vector["default"].weight.copy_(layer.lora_magnitude_vector)
    return theirs, own


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_and_dropout_are_pefts(dropout):
    torch.manual_seed(0)
    base = nn.Linear(6, 4).requires_grad_(False)
    layer = filled(base, dropout=dropout).requires_grad_(True)
    base.requires_grad_(False)
    theirs, own = peft_of(base, layer, dropout)
    theirs.train()
    layer.train()
    x = torch.randn(5, 6)
    seen, target = [x.clone().requires_grad_(True) for _ in range(2)], torch.randn(5, 4)
    with Rng(0).scope():
        ours = layer(seen[0])
    with Rng(0).scope():
        expected = theirs(seen[1])
    torch.testing.assert_close(ours, expected)
    ours.backward(target)
    expected.backward(target)
    torch.testing.assert_close(seen[0].grad, seen[1].grad)
    torch.testing.assert_close(layer.lora_A.grad, own.lora_A["default"].weight.grad)
    torch.testing.assert_close(layer.lora_B.grad, own.lora_B["default"].weight.grad)
    torch.testing.assert_close(
        layer.lora_magnitude_vector.grad, own.lora_magnitude_vector["default"].weight.grad.view(-1)
    )


def test_norms_are_exact_under_autocast_and_over_a_base_in_half_precision():
    torch.manual_seed(0)
    layer = filled(nn.Linear(6, 4))
    x, exact = torch.randn(5, 6), layer.norms()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.norms(), exact)
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    for dtype in (torch.bfloat16, torch.float16):
        base = nn.Linear(6, 4).to(dtype)
        half = filled(base)
        whole = filled(copy.deepcopy(base).float())
        with torch.no_grad():
            for own, other in zip(half.parameters(recurse=False), whole.parameters(recurse=False), strict=True):
                other.copy_(own)
        assert half.lora_magnitude_vector.dtype == torch.float32
        assert torch.equal(half.norms(), whole.norms())
        assert half(x.to(dtype)).dtype == dtype
        torch.testing.assert_close(half(x.to(dtype)).float(), whole(x.to(dtype).float()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("make", [partial(nn.Linear, 64, 8), partial(Conv1D, 8, 64)])
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_over_a_quantised_base_it_is_dora_of_the_dequantised_weight(make, quantization):
    torch.manual_seed(0)
    base = QuantizedLinear(make(), quantization, torch.float32)
    layer, plain = filled(base), nn.Linear(64, 8)
    with torch.no_grad():
        plain.weight.copy_(base.dequantized(torch.float32))
        plain.bias.copy_(base.bias)
    whole = DoraLinear(plain, LoraSettings(rank=3, alpha=6.0))
    torch.testing.assert_close(DoraLinear(base, LoraSettings(rank=3, alpha=6.0)).norms(), whole.norms())
    with torch.no_grad():
        for own, other in zip(layer.parameters(recurse=False), whole.parameters(recurse=False), strict=True):
            other.copy_(own)
    x = torch.randn(5, 64)
    torch.testing.assert_close(layer(x), whole(x))
    merged = layer.merged().T if base.transposed else layer.merged()
    torch.testing.assert_close(merged, whole.merged())


def test_norms_are_computed_once_while_nothing_changes():
    layer = filled(nn.Linear(6, 4))
    x, computed = torch.randn(5, 6), []
    expected = layer(x)
    layer.norms = lambda: computed.append(None) or DoraLinear.norms(layer)
    with torch.no_grad(), unchanging([layer]):
        assert all(torch.equal(layer(x), expected) for _ in range(3))
    assert len(computed) == 1
    with torch.no_grad():
        layer.lora_B.mul_(2)
    assert not torch.equal(layer(x), expected)


def test_it_runs_on_the_meta_device():
    with torch.device("meta"):
        base = nn.Linear(6, 4)
    layer = DoraLinear(base, LoraSettings(rank=3, alpha=6.0))
    assert layer.lora_magnitude_vector.is_meta
    assert layer(torch.randn(5, 6, device="meta")).shape == (5, 4)


def test_a_weight_that_is_not_of_floating_point_numbers_is_refused():
    class Packed(nn.Linear):
        weight = None

        def __init__(self):
            nn.Module.__init__(self)
            self.in_features, self.out_features = 6, 4
            self.register_buffer("packed", torch.zeros(4, 6, dtype=torch.int8))

    with pytest.raises(ModelError, match=r"adapter.use_dora = true: needs the weight of 'net.q' .* a Packed's is none"):
        DoraLinear(Packed(), LoraSettings(rank=3, alpha=6.0), "net.q")


@pytest.mark.parametrize(("name", "task"), CASES)
def test_peft_computes_the_same_logits_from_our_folder_and_gives_it_back(tmp_path, name, task):
    base, found, where, params, settings = adapted(name, task)
    folder = save_peft(tmp_path / "a", params, found.model, where, settings, base_name="base", task=task)
    ours = found.model(**inputs(task)).logits
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()
    torch.testing.assert_close(theirs(**inputs(task)).logits, ours, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    loaded = copy.deepcopy(base)
    LORA.load(loaded, found.blocks, tmp_path / "again")
    torch.testing.assert_close(loaded(**inputs(task)).logits, ours)
    for one in (folder, tmp_path / "again"):
        again, told = load_peft(one, where)
        assert told.use_dora
        assert all(torch.equal(again[name], params[name]) for name in params)
    torch.testing.assert_close(theirs.merge_and_unload()(**inputs(task)).logits, ours, rtol=0, atol=1e-5)
    assert float((ours - base(**inputs(task)).logits).abs().max()) > 0.01


def test_folder_and_settings_must_agree_on_magnitudes(tmp_path):
    _, found, where, params, settings = adapted("tiny:vit", "image-classification")

    def saved(params, settings=settings):
        save_peft(tmp_path / "a", params, found.model, where, settings, base_name="b", task="image-classification")

    first = "vit.layers.0.attention.q_proj"
    with pytest.raises(ModelError, match=f"module '{first}' has no magnitude, but the settings say use_dora = True"):
        saved({name: value for name, value in params.items() if name != f"{first}.lora_magnitude_vector"})
    with pytest.raises(ModelError, match=f"module '{first}' has a magnitude, but the settings say use_dora = False"):
        saved(params, LoraSettings(3, 12.0, targets=settings.targets))
    with pytest.raises(ModelError, match=rf"'{first}': lora_magnitude_vector is \(1,\); it must be \(32,\)"):
        saved(params | {f"{first}.lora_magnitude_vector": torch.ones(1)})


def test_the_layout_has_the_magnitude_beside_its_factors_and_removal_leaves_the_base():
    base, found, where, params, _ = adapted("tiny:vit", "image-classification")
    module = "vit.layers.1.attention.v_proj"
    assert where.shapes[f"{module}.lora_magnitude_vector"] == (32,)
    assert f"{module}.lora_magnitude_vector" in where.names([1])
    assert all(isinstance(one, DoraLinear) for one in adapters(found.model).values())
    taken = remove(found.model)
    assert taken.keys() == params.keys() - set(found.head)
    plain = {name: value for name, value in found.model.state_dict().items() if not name.startswith("classifier")}
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in plain.items())
