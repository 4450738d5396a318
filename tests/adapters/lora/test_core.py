"""B (I + T) A: what it computes, what it is without T, what is trained when, and the plain LoRA that it folds into."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from torch import nn

from fedquilt.adapters.lora.core import cores, drift, folded, with_cores
from fedquilt.adapters.lora.inject import adapters, fresh, initial, inject, layout, load, trainable
from fedquilt.adapters.lora.module import LoraLinear
from fedquilt.adapters.lora.peft_files import save_peft
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.sites import Place, places, places_in, sites_of
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
laws = settings(max_examples=60, deadline=None)

MODELS = {
    "tiny:llama": ("causal-lm", ("q_proj", "v_proj"), False),
    "tiny:gpt2": ("causal-lm", ("c_attn", "mlp.c_proj"), True),
    "tiny:bert": ("sequence-classification", ("query", "value"), False),
}


class Transposed(nn.Module):
    """A linear module that keeps its weight as (d_in, d_out), as GPT-2's Conv1D does."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


def layer_of(make=lambda: nn.Linear(6, 4), rank=3, seed=0, dtype=torch.float32) -> LoraLinear:
    """An adapter all of whose parts do something, its core too, which is not symmetric."""
    with Rng(seed).scope():
        base = make().to(dtype)
        layer = LoraLinear(base, LoraSettings(rank=rank, alpha=6.0), "layer").eval()
        layer.lora_A.data, layer.lora_B.data = torch.randn(rank, 6), torch.randn(4, rank)
        layer.core = torch.randn(rank, rank)
    return layer


def inputs():
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(4, 200, (4, 9), generator=generator), "attention_mask": torch.ones(4, 9).long()}


def adapted(name, rank=3, seed=1):
    """A base, a copy of it with adapters, its layout, tensors that do something, settings, and cores that do too."""
    task, targets, _ = MODELS[name]
    found = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
    base = copy.deepcopy(found.model)
    chosen = LoraSettings(rank=rank, alpha=2.0 * rank, targets=targets)
    inject(found.model, found.blocks, chosen, (), found.head)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in initial(where, found.model)(Rng(1)).items()
    }
    load(trainable(found.model, where), params)
    at = places(adapters(found.model), found.blocks)
    values = {site: torch.randn(where.num_layers, rank * rank, generator=generator) for site in sorted(sites_of(at))}
    return base, found, where, params, chosen, cores(values, at, rank)


# What it computes ------------------------------------------------------------


def test_forward_is_the_worked_one():
    layer = LoraLinear(nn.Linear(2, 1, bias=False), LoraSettings(rank=2, alpha=4.0))
    with torch.no_grad():
        layer.base.weight.copy_(torch.tensor([[1.0, 1.0]]))
        layer.lora_A.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        layer.lora_B.copy_(torch.tensor([[10.0, 100.0]]))
    layer.core = torch.tensor([[0.0, 1.0], [0.0, 0.0]])  # T A x = (second, 0): the transpose would give (0, first)
    # base 3 + 5; A x = (3, 5); (I + T) A x = (8, 5); B: 80 + 500; scale 2
    assert layer(torch.tensor([[3.0, 5.0]])).tolist() == [[8.0 + 2 * 580.0]]


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: Transposed(4, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_h2_14_the_merged_weight_computes_what_the_adapter_computes(make, seed):
    """H2-14. The released code merges B T A without the I (B16), and serves with T transposed (B15)."""
    layer = layer_of(make, seed=seed)
    x = torch.randn(5, 7, 6, generator=Rng(seed).torch())
    live = layer(x).detach()
    transposed = layer.base(x).detach() + 2 * x @ layer.lora_A.T @ (torch.eye(3) + layer.core) @ layer.lora_B.T
    without = layer.base(x).detach() + 2 * x @ layer.lora_A.T @ layer.core.T @ layer.lora_B.T
    assert float((live - transposed).abs().max()) > 0.1
    assert float((live - without).abs().max()) > 0.1
    with torch.no_grad():
        layer.base.weight.copy_(layer.merged())
    torch.testing.assert_close(layer.base(x), live, rtol=1e-4, atol=1e-4)


@laws
@given(st.integers(1, 5), st.integers(0, 2**32))
def test_h2_1_with_b_zero_any_a_and_core_change_nothing_to_the_bit(rank, seed):
    """H2-1. Nothing in the released code tests it; a T outside the product would break it."""
    layer = layer_of(rank=rank, seed=seed)
    layer.lora_B.data.zero_()
    x = torch.randn(5, 6, generator=Rng(seed).torch())
    assert torch.equal(layer(x), layer.base(x))
    assert torch.equal(layer.merged(), layer.base.weight)


@laws
@given(st.integers(1, 5), st.integers(0, 2**32))
def test_h2_2_a_core_of_zeros_is_plain_lora_to_the_bit(rank, seed):
    """H2-2. The released code's core is never zero: it starts and restarts at random (B1, B5)."""
    layer = layer_of(rank=rank, seed=seed)
    x = torch.randn(5, 6, generator=Rng(seed).torch())
    layer.core = torch.zeros(rank, rank)
    with_zeros, merged = layer(x), layer.merged()
    layer.core = None
    assert torch.equal(layer(x), with_zeros)
    assert torch.equal(layer.merged(), merged)


def test_a_base_in_half_precision_and_a_base_with_a_shift_work_too():
    layer = layer_of(dtype=torch.bfloat16)
    x = torch.randn(5, 6, generator=Rng(0).torch()).bfloat16()
    expected = 2 * (x.float() @ layer.lora_A.T @ (torch.eye(3) + layer.core).T @ layer.lora_B.T)
    torch.testing.assert_close(layer(x).float(), layer.base(x).float() + expected, rtol=0.02, atol=0.02)
    assert layer(x).dtype == torch.bfloat16
    shifted = layer_of()
    shifted.shift = torch.randn(4, 6, generator=Rng(1).torch())
    x = torch.randn(5, 6, generator=Rng(0).torch())
    live = shifted(x)
    with torch.no_grad():
        shifted.base.weight.copy_(shifted.merged())
    torch.testing.assert_close(shifted.base(x), live, rtol=1e-4, atol=1e-4)


def test_a_switched_off_adapter_leaves_its_core_off():
    layer = layer_of()
    layer.active = False
    x = torch.ones(1, 6)
    assert torch.equal(layer(x), layer.base(x))


def test_gradients_to_a_b_and_core_are_autograds_of_the_formula():
    layer = layer_of()
    x, target = torch.randn(5, 6, generator=Rng(0).torch()), torch.randn(5, 4, generator=Rng(1).torch())
    leaves = [layer.lora_A, layer.lora_B, layer.core]
    for leaf in leaves:
        leaf.requires_grad_(True)
    ours = torch.autograd.grad((layer(x) - target).square().sum(), leaves)
    a, b, core = (leaf.detach().double().requires_grad_(True) for leaf in leaves)
    base = layer.base(x).detach().double()
    whole = base + 2 * x.double() @ (b @ (torch.eye(3, dtype=torch.float64) + core) @ a).T
    theirs = torch.autograd.grad((whole - target).square().sum(), (a, b, core))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left.double(), right, rtol=1e-4, atol=1e-4)
        assert float(left.abs().max()) > 0.1


# Where cores come from ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tiny:llama", {"query", "value"}), ("tiny:gpt2", {"query", "down"}), ("tiny:bert", {"query", "value"})],
)
def test_modules_of_unlike_models_find_the_same_sites(name, expected):
    _, found, where, *_ = adapted(name)
    at = places(adapters(found.model), found.blocks)
    assert set(sites_of(at)) == expected
    assert {place.layer for place in at.values()} == set(range(where.num_layers))
    assert all(found.blocks.depth(module) == place.layer for module, place in at.items())
    assert places_in(where) == at


def test_a_core_is_the_values_of_its_site_at_its_layer():
    at = {"layers.0.q": Place("query", 0), "layers.1.q": Place("query", 1), "layers.1.v": Place("value", 1)}
    values = {"query": torch.arange(8.0).view(2, 4), "value": torch.tensor([[0.0], [7.0]])}
    made = cores(values, at, 2)
    assert made["layers.1.q"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert made["layers.1.v"].tolist() == [[7.0, 0.0], [0.0, 0.0]]
    assert made.keys() == at.keys()


def test_cores_are_there_while_the_context_lasts_even_if_it_breaks():
    layer, core = layer_of(), torch.ones(3, 3)
    before = layer.core

    def broken():
        with with_cores({"q": layer}, {"q": core}):
            assert layer.core is core
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert layer.core is before


def test_cores_that_fit_no_adapter_are_refused_before_anything_changes():
    layer = layer_of()
    before = layer.core
    with (
        pytest.raises(ModelError, match=r"the core of 'q' is \(2, 2\); its adapter has rank 3"),
        with_cores({"q": layer}, {"q": torch.ones(2, 2)}),
    ):
        pass
    with (
        pytest.raises(ModelError, match="there is a core for 'v', which has no adapter"),
        with_cores({"q": layer}, {"v": torch.ones(3, 3)}),
    ):
        pass
    assert layer.core is before


def test_zero_start_fresh_factors_and_any_core_leave_a_model_as_it_was():
    """H2-1, on a whole model of each kind."""
    for name in MODELS:
        base, found, where, _, chosen, made = adapted(name)
        load(trainable(found.model, where), fresh(where, chosen.rank, Rng(5)))
        head = {name: parameter for name, parameter in base.named_parameters() if name in where.head}
        load(trainable(found.model, where), head)
        with with_cores(adapters(found.model), made):
            assert torch.equal(found.model(**inputs()).logits, base(**inputs()).logits)


# What is trained when ------------------------------------------------------------


def test_h2_13_what_the_core_learns_outlives_the_next_forward():
    """H2-13. The released code overwrites T at every forward: 50 steps of a plain trainer change nothing (B9)."""
    layer, values = layer_of(), torch.zeros(1, 9)
    x = torch.randn(64, 6, generator=Rng(0).torch())
    layer.core = torch.randn(3, 3, generator=Rng(3).torch())
    target = layer(x).detach()
    layer.core = None
    values.requires_grad_(True)
    optimizer, losses = torch.optim.Adam([values], lr=0.05), []
    for _ in range(200):
        with with_cores({"layer": layer}, cores({"query": values}, {"layer": Place("query", 0)}, 3)):
            loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[50] < 0.5 * losses[0]
    assert losses[-1] < 1e-3 * losses[0]


def test_h2_10_the_tasks_gradient_reaches_the_values_once_b_is_not_zero():
    """H2-10. In the released code the task's loss never reaches what is shared (B6, B9)."""
    layer, values = layer_of(), torch.zeros(1, 9, requires_grad=True)
    x = torch.randn(8, 6, generator=Rng(0).torch())

    def gradient():
        with with_cores({"layer": layer}, cores({"query": values}, {"layer": Place("query", 0)}, 3)):
            return torch.autograd.grad(layer(x).square().sum(), values)[0]

    assert float(gradient().abs().min()) > 0
    layer.lora_B.data.zero_()
    assert not gradient().any()


def test_drift_is_the_worked_one_and_has_its_gradient():
    moved, still = torch.tensor([[1.0, 2.0], [0.0, 2.0]], requires_grad=True), torch.zeros(2, 2)
    reference = {"q": torch.zeros(2, 2), "v": torch.zeros(2, 2)}
    total = drift({"q": moved, "v": still}, reference)
    assert float(total.detach()) == pytest.approx((9 / 8 + 0) / 2)
    # of T over 2 r^2, twice over: T / r^2, and the mean over two modules
    torch.testing.assert_close(torch.autograd.grad(total, moved)[0], moved.detach() / 4 / 2)
    with pytest.raises(ValueError, match="no cores"):
        drift({}, {})


def test_drift_minds_a_constant_shift():
    """The released code's softmax KL does not: a shift of all entries by 5 costs it nothing (section on losses)."""
    reference = torch.randn(4, 4, generator=Rng(0).torch())
    assert float(drift({"q": reference + 5}, {"q": reference})) == pytest.approx(12.5, rel=1e-5)


# Folded into plain LoRA ------------------------------------------------------------


@laws
@given(st.integers(1, 6), st.integers(0, 2**32), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_the_folded_product_is_the_dense_one(rank, seed, dtype):
    generator = Rng(seed).torch()
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((rank, 7), (5, rank)))
    core = torch.randn(rank, rank, generator=generator)
    params = {"q.lora_A": a, "q.lora_B": b, "head.weight": torch.ones(2)}
    plain = folded(params, {"q": core})
    assert plain.keys() == params.keys()
    assert plain["q.lora_A"] is a
    assert plain["head.weight"] is params["head.weight"]
    assert plain["q.lora_B"].dtype == dtype
    dense = b.double() @ (torch.eye(rank, dtype=torch.float64) + core.double()) @ a.double()
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    product = plain["q.lora_B"].double() @ a.double()
    torch.testing.assert_close(product, dense, rtol=0, atol=tolerance * max(1.0, float(dense.abs().max())))


def test_folding_a_core_of_zeros_keeps_every_bit_and_folding_nothing_is_the_same():
    params = {
        "q.lora_A": torch.randn(2, 3, generator=Rng(0).torch()),
        "q.lora_B": torch.randn(3, 2, generator=Rng(1).torch()),
    }
    assert torch.equal(folded(params, {"q": torch.zeros(2, 2)})["q.lora_B"], params["q.lora_B"])
    assert folded(params, {}) == params


def test_folding_a_core_that_fits_nothing_is_refused():
    params = {"q.lora_A": torch.ones(2, 3), "q.lora_B": torch.ones(3, 2)}
    with pytest.raises(ModelError, match="there is a core for 'v'"):
        folded(params, {"v": torch.ones(2, 2)})
    with pytest.raises(ModelError, match=r"the core of 'q' is \(3, 3\); its adapter has rank 2"):
        folded(params, {"q": torch.ones(3, 3)})


@pytest.mark.parametrize("name", MODELS)
def test_h2_14_peft_computes_the_live_logits_from_the_folded_adapter(tmp_path, name):
    """H2-14. The released code evaluates with T transposed and merges without the I: another model (B15, B16)."""
    base, found, where, params, chosen, made = adapted(name)
    task, _, _ = MODELS[name]
    with with_cores(adapters(found.model), made):
        live = found.model(**inputs()).logits.detach()
    without = found.model(**inputs()).logits.detach()
    plain = folded(params, made)
    load(trainable(found.model, where), plain)
    torch.testing.assert_close(found.model(**inputs()).logits, live, rtol=0, atol=1e-4)
    folder = save_peft(tmp_path / "a", plain, found.model, where, chosen, base_name="base", task=task)
    theirs = PeftModel.from_pretrained(base, str(folder)).eval()
    assert isinstance(theirs.peft_config["default"], LoraConfig)
    torch.testing.assert_close(theirs(**inputs()).logits, live, rtol=0, atol=1e-4)
    torch.testing.assert_close(theirs.merge_and_unload()(**inputs()).logits, live, rtol=0, atol=1e-4)
    assert float((live - without).abs().max()) > 0.01
