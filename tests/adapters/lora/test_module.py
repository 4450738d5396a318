import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedquilt.adapters.lora.inject import adapters, inject
from fedquilt.adapters.lora.module import (
    LoraLinear,
    initial_factors,
    is_linear,
    merged_weights,
    num_features,
)
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks


class Transposed(nn.Module):
    """A linear module that keeps its weight as (d_in, d_out), as GPT-2's Conv1D does."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class Packed(nn.Module):
    """A quantised linear module: only its forward knows what the bytes in ``packed`` mean."""

    in_features, out_features = 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", torch.randint(-8, 8, (4, 6), dtype=torch.int8))

    def forward(self, x):
        return x @ (self.packed.to(x.dtype) / 8).T


def filled(base: nn.Module, **values) -> LoraLinear:
    layer = LoraLinear(base, LoraSettings(**{"rank": 3, "alpha": 6.0} | values), "layer")
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_()
    return layer


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: Transposed(4, 6), Packed])
def test_forward_adds_the_scaled_low_rank_term_to_the_bases_own_forward(make):
    torch.manual_seed(0)
    base = make()
    layer = filled(base)
    x = torch.randn(5, 7, 6)
    expected = base(x) + 2.0 * (x @ layer.lora_A.T @ layer.lora_B.T)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: Transposed(4, 6)])
def test_delta_and_merged_have_the_orientation_of_the_base(make):
    torch.manual_seed(0)
    base = make()
    layer = filled(base)
    x = torch.randn(5, 6)
    assert layer.delta().shape == base.weight.shape
    expected = layer(x)
    with torch.no_grad():
        base.weight.copy_(layer.merged())
    torch.testing.assert_close(base(x), expected, rtol=1e-5, atol=1e-5)


def test_scaling_is_alpha_over_rank_or_over_its_root_and_follows_patterns():
    plain = LoraSettings(rank=4, alpha=8.0, rank_pattern={"layers.1.q": 16}, alpha_pattern={r"layers\.1\..*": 32.0})
    assert plain.scaling("net.layers.0.q") == 2.0
    assert plain.scaling("net.layers.1.q") == 2.0
    assert plain.scaling("net.layers.1.v") == 8.0
    assert plain.scaling("net.layers.11.q") == 2.0  # layer 11 is not layer 1
    assert LoraSettings(rank=16, alpha=8.0, rslora=True).scaling("q") == 8.0 / math.sqrt(16)


def test_fresh_factors_change_nothing_to_the_bit_and_are_bounded():
    a, b = initial_factors("net.q", 6, 4, 3, Rng(1))
    layer = filled(nn.Linear(6, 4))
    with torch.no_grad():
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), layer.base(x))
    assert a.shape == (3, 6)
    assert float(a.abs().max()) <= 1 / math.sqrt(6)
    wide, _ = initial_factors("net.q", 400, 4, 64, Rng(1))
    torch.testing.assert_close(wide.std(), torch.tensor(1 / math.sqrt(400) / math.sqrt(3)), rtol=0.02, atol=0)


def test_factors_depend_on_seed_and_name_alone():
    a, _ = initial_factors("net.q", 6, 4, 3, Rng(1))
    assert torch.equal(a, initial_factors("net.q", 6, 4, 3, Rng(1))[0])
    assert not torch.equal(a, initial_factors("net.v", 6, 4, 3, Rng(1))[0])
    assert not torch.equal(a, initial_factors("net.q", 6, 4, 3, Rng(2))[0])


def test_dropout_acts_on_the_adapter_in_training_only():
    layer = filled(nn.Linear(6, 4), dropout=0.5)
    x = torch.ones(64, 6)
    with Rng(0).scope():
        trained = layer.train()(x)
    assert not torch.equal(trained[0], trained[1])
    evaluated = layer.eval()(x)
    assert torch.equal(evaluated[0], evaluated[1])


def test_only_the_factors_get_gradients_and_they_are_autograds():
    layer = filled(nn.Linear(6, 4).requires_grad_(False))
    layer.lora_A.requires_grad_(True)
    layer.lora_B.requires_grad_(True)
    x, g = torch.randn(5, 6), torch.randn(5, 4)
    layer(x).backward(g)
    torch.testing.assert_close(layer.lora_B.grad, 2.0 * g.T @ (x @ layer.lora_A.detach().T))
    torch.testing.assert_close(layer.lora_A.grad, 2.0 * (g @ layer.lora_B.detach()).T @ x)
    assert layer.base.weight.grad is None


def test_runs_under_bf16_autocast_over_a_bf16_base_and_on_meta():
    layer = filled(nn.Linear(6, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(5, 6)).dtype == torch.bfloat16
    half = filled(nn.Linear(6, 4).bfloat16())
    assert half.lora_A.dtype == torch.float32
    assert half(torch.randn(5, 6).bfloat16()).dtype == torch.bfloat16
    with torch.device("meta"):
        base = nn.Linear(6, 4)
    layer = LoraLinear(base, LoraSettings(rank=3, alpha=6.0))
    assert layer.lora_A.is_meta
    assert layer(torch.randn(5, 6, device="meta")).shape == (5, 4)


def test_what_is_not_linear_is_refused_by_name():
    with pytest.raises(ModelError, match=r"a LayerNorm cannot be adapted.*adapter\.targets"):
        num_features(nn.LayerNorm(4))
    assert is_linear(nn.Linear(2, 2))
    assert is_linear(Transposed(2, 2))
    assert is_linear(Packed())
    assert not is_linear(nn.LayerNorm(4))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rank": 0}, r"adapter\.rank is 0; it must be a whole number of at least 1"),
        ({"rank": 2.5}, r"adapter\.rank is 2\.5"),
        ({"alpha": -1.0}, r"adapter\.alpha is -1\.0; it must be a finite number above 0"),
        ({"alpha": math.inf}, r"adapter\.alpha is inf"),
        ({"dropout": 1.0}, r"adapter\.dropout is 1\.0; it must be a finite number of at least 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_told(values, text):
    with pytest.raises(ConfigError, match=text):
        LoraSettings(**{"rank": 4, "alpha": 8.0} | values)


class Block(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.q = nn.Linear(6, 6) if kind is nn.Linear else Transposed(6, 6)
        self.v = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.tanh(self.q(x)) * self.v(x)


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(kind) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([nn.Linear, Transposed]),
    chosen=st.sets(st.sampled_from(["layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v"])),
    seed=st.integers(0, 2**16),
)
def test_merged_weights_equal_the_live_forward_for_every_set_of_active_adapters(kind, chosen, seed):
    with Rng(seed).scope():
        net, x = Net(kind).double(), torch.randn(5, 6, dtype=torch.float64)
        plain = Net(kind).double()
        plain.load_state_dict(net.state_dict())
        inject(net, Blocks("layers", 2), LoraSettings(rank=2, alpha=4.0), ("q", "v"))
        net.double()
        for module in adapters(net).values():
            nn.init.normal_(module.lora_A)
            nn.init.normal_(module.lora_B)
    for name, module in adapters(net).items():
        module.active = name in chosen
    live, merged = net(x), merged_weights(adapters(net))
    assert {name.removesuffix(".weight") for name in merged} == chosen
    torch.testing.assert_close(torch.func.functional_call(plain, merged, (x,)), live)
