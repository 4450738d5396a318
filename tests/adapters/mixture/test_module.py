import math
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from fedquilt.adapters.mixture.module import MixtureLinear, drawn_down, drawn_expert
from fedquilt.adapters.mixture.settings import Gate, MixtureSettings, Placement
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.rng import Rng

GATES, PLACEMENTS = get_args(Gate), get_args(Placement)

every_form = pytest.mark.parametrize(
    ("gate", "activation", "placement"), list(product(GATES, ("gelu", "identity"), PLACEMENTS))
)


class Transposed(nn.Module):
    """A linear module that keeps its weight as (d_in, d_out), as GPT-2's Conv1D does."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


def made(base=None, branches=3, seed=0, **values) -> MixtureLinear:
    """A mixture with every tensor drawn, ``up`` too."""
    generator = Rng(seed, ("made",)).torch()
    with Rng(seed).scope():
        base = nn.Linear(5, 4) if base is None else base
    options = MixtureSettings(**{"rank": 2, "branches": branches, "num_slots": 1, "alpha": 6.0} | values)
    experts = {f"e.{branch}": nn.Parameter(torch.randn(2, 2, generator=generator)) for branch in range(branches)}
    layer = MixtureLinear(base, options, experts)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith("base."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def by_hand(layer: MixtureLinear, x):
    """The forward pass written out, row by row and branch by branch."""
    y = layer.base(x)
    rows = []
    for row, out in zip(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), strict=True):
        z = layer.down @ (out if layer.settings.placement == "serial" else row)
        z = F.gelu(z) if layer.settings.activation == "gelu" else z
        logits = {
            "uniform": lambda z: torch.zeros(len(layer.experts)),
            "static": lambda z: layer.gate,
            "token": lambda z: layer.gate_weight @ z + layer.gate_bias,
        }[layer.settings.gate](z)
        odds = logits.exp() / logits.exp().sum()
        mixed = z + sum(odd * (expert @ z) for odd, expert in zip(odds, layer.experts, strict=True))
        rows.append(out + layer.settings.scaling * (layer.up @ mixed))
    return torch.stack(rows).reshape(y.shape)


@every_form
def test_forward_is_the_formula(gate, activation, placement):
    layer = made(gate=gate, activation=activation, placement=placement)
    x = torch.randn(2, 3, 5, generator=Rng(1).torch())
    torch.testing.assert_close(layer(x), by_hand(layer, x))


def test_a_mixture_worked_by_hand():
    """y = 2, z = 3 y = 6, branches 10 z = 60 and -4 z = -24 at a quarter and three quarters, up 5, scale 2."""
    base = nn.Linear(1, 1, bias=False)
    layer = MixtureLinear(
        base,
        MixtureSettings(1, branches=2, num_slots=1, alpha=2.0, activation="identity"),
        {"a": nn.Parameter(torch.tensor([[10.0]])), "b": nn.Parameter(torch.tensor([[-4.0]]))},
    )
    with torch.no_grad():
        base.weight.fill_(2.0)
        layer.down.fill_(3.0)
        layer.up.fill_(5.0)
        layer.gate.copy_(torch.tensor([0.0, math.log(3.0)]))
    # 2 + 2 * 5 * (6 + 60 / 4 - 24 * 3 / 4) = 32
    torch.testing.assert_close(layer(torch.tensor([[1.0]])), torch.tensor([[32.0]]))
    weight, bias = layer.folded()
    torch.testing.assert_close(weight, torch.tensor([[32.0]]))
    assert bias is None


@every_form
def test_ht_1_with_up_zero_the_output_is_the_bases_to_the_bit_whatever_the_rest(gate, activation, placement):
    layer = made(gate=gate, activation=activation, placement=placement)
    with torch.no_grad():
        layer.up.zero_()
    x = torch.randn(7, 5, generator=Rng(1).torch())
    assert torch.equal(layer(x), layer.base(x))


def test_an_inactive_mixture_leaves_the_base_and_one_without_branches_is_a_plain_adapter():
    layer = made(activation="identity")
    x = torch.randn(7, 5, generator=Rng(1).torch())
    layer.active = False
    assert torch.equal(layer(x), layer.base(x))
    alone = MixtureLinear(layer.base, layer.settings)
    assert [name for name, _ in alone.named_parameters() if not name.startswith("base.")] == ["down", "up"]
    with torch.no_grad():
        alone.down.copy_(layer.down)
        alone.up.copy_(layer.up)
    y = layer.base(x)
    torch.testing.assert_close(alone(x), y + 3.0 * (y @ alone.down.T @ alone.up.T))


def trainables(layer: MixtureLinear) -> dict[str, nn.Parameter]:
    found = {name: one for name, one in layer.named_parameters() if not name.startswith("base.")}
    return found | dict(zip(layer.expert_names, layer.experts, strict=True))


@every_form
def test_ht_13_gradients_through_gates_and_branches_are_finite_differences(gate, activation, placement):
    layer = made(nn.Linear(3, 3), gate=gate, activation=activation, placement=placement).double()
    own = {name: one.detach().clone() for name, one in trainables(layer).items()}
    x = torch.randn(4, 3, generator=Rng(1).torch(), dtype=torch.float64)
    names = [name for name in own if name not in layer.expert_names]

    def run(*values):
        given = dict(zip(own, values, strict=True))
        layer.experts = tuple(given[name] for name in layer.expert_names)
        return functional_call(layer, {name: given[name] for name in names}, (x,)).sin().sum()

    values = [one.double().requires_grad_(True) for one in own.values()]
    assert torch.autograd.gradcheck(run, values)


@every_form
def test_gradients_are_those_of_the_formula_written_out(gate, activation, placement):
    layer = made(gate=gate, activation=activation, placement=placement)
    x = torch.randn(6, 5, generator=Rng(1).torch())
    found = trainables(layer)
    for one in found.values():
        one.requires_grad_(True)
    ours = torch.autograd.grad(layer(x).square().sum(), list(found.values()))
    plain = torch.autograd.grad(by_hand(layer, x).square().sum(), list(found.values()))
    for name, one, other in zip(found, ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def steps_of(layer: MixtureLinear, num_steps: int):
    """``layer`` after each of so many plain gradient steps on a small regression."""
    x, goal = torch.randn(64, 5, generator=Rng(2).torch()), torch.randn(64, 4, generator=Rng(3).torch())
    found = trainables(layer)
    for one in found.values():
        one.requires_grad_(True)
    optimizer = torch.optim.SGD(found.values(), lr=0.05)
    history = [{name: one.detach().clone() for name, one in found.items()}]
    for _ in range(num_steps):
        optimizer.zero_grad()
        F.mse_loss(layer(x), goal).backward()
        optimizer.step()
        history.append({name: one.detach().clone() for name, one in found.items()})
    return history


@every_form
def test_ht_2_the_first_step_moves_up_alone_and_the_second_everything(gate, activation, placement):
    layer = made(gate=gate, activation=activation, placement=placement)
    with torch.no_grad():
        layer.up.zero_()
    start, first, second = steps_of(layer, 2)
    assert [name for name in start if not torch.equal(start[name], first[name])] == ["up"]
    still = [name for name in start if torch.equal(first[name], second[name])]
    assert still == []


def test_ht_2_equal_branches_trained_alike_stay_equal_for_ever_and_distinct_ones_part():
    """The tie: branches that begin at zero get the same gradient for ever; those of the drawn start do not."""
    tied, free = made(), made()
    drawn = MixtureSettings(2, branches=3, num_slots=1)
    with torch.no_grad():
        for branch, (one, other) in enumerate(zip(tied.experts, free.experts, strict=True)):
            one.zero_()
            other.copy_(drawn_expert(f"mixture.attention.0.{branch}", drawn, Rng(0)))
        for layer in (tied, free):
            layer.gate.zero_()
    *_, after_tie = steps_of(tied, 30)
    assert not torch.equal(after_tie["e.0"], torch.zeros(2, 2))
    torch.testing.assert_close(after_tie["e.0"], after_tie["e.1"], rtol=0, atol=1e-7)
    torch.testing.assert_close(after_tie["gate"], torch.zeros(3), rtol=0, atol=1e-6)
    start, *_, after = steps_of(free, 30)
    assert (after["e.0"] - after["e.1"]).norm() > 1.01 * (start["e.0"] - start["e.1"]).norm()
    assert after["gate"].abs().max() > 1e-4


def test_the_draw_of_branches_depends_on_name_and_stream_alone_and_has_the_variance():
    options = MixtureSettings(64, branches=2, num_slots=1, deviation=0.5)
    other = replace(options, branches=5, num_slots=9)
    one = drawn_expert("mixture.attention.0.0", options, Rng(7))
    assert torch.equal(one, drawn_expert("mixture.attention.0.0", other, Rng(7)))
    assert not torch.equal(one, drawn_expert("mixture.attention.0.1", options, Rng(7)))
    assert float(one.std()) == pytest.approx(0.5 / 8, rel=0.05)
    assert float(drawn_down("m", 64, 256, Rng(7)).std()) == pytest.approx(1 / 16, rel=0.05)
    own = MixtureSettings(4, branches=2, num_slots=1, trained="own")
    assert not drawn_expert("mixture.attention.0.0", own, Rng(7)).any()


linear_forms = pytest.mark.parametrize(("gate", "placement"), list(product(("uniform", "static"), PLACEMENTS)))


@linear_forms
@pytest.mark.parametrize(
    "base", [lambda: nn.Linear(5, 4), lambda: Transposed(4, 5), lambda: nn.Linear(5, 4, bias=False)]
)
def test_ht_12_the_folded_weight_and_bias_compute_what_the_live_module_does(gate, placement, base):
    with Rng(0).scope():
        module = base()
    layer = made(module, gate=gate, placement=placement, activation="identity")
    x = torch.randn(3, 7, 5, generator=Rng(1).torch())
    live = layer(x)
    weight, bias = layer.folded()
    assert weight.shape == module.weight.shape
    assert (bias is None) == (module.bias is None)
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)
    torch.testing.assert_close(module(x), live, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from(PLACEMENTS), st.sampled_from(("uniform", "static")))
def test_ht_12_folding_is_exact_in_double_precision_for_any_values(seed, branches, placement, gate):
    layer = made(branches=branches, seed=seed, gate=gate, placement=placement, activation="identity").double()
    before = {name: one.clone() for name, one in trainables(layer).items()}
    for expert in layer.experts:
        expert.data = expert.data.double()
    x = torch.randn(6, 5, generator=Rng(seed).torch(), dtype=torch.float64)
    live = layer(x)
    weight, bias = layer.folded()
    torch.testing.assert_close(F.linear(x, weight, bias), live, rtol=1e-9, atol=1e-9)
    for name, one in trainables(layer).items():
        assert torch.equal(one.float(), before[name].float()), name


@linear_forms
def test_as_lora_is_the_same_map_where_there_is_no_bias(gate, placement):
    layer = made(nn.Linear(5, 4, bias=False), gate=gate, placement=placement, activation="identity")
    b, a = layer.as_lora()
    assert (b.shape, a.shape) == ((4, 2), (2, 5))
    x = torch.randn(6, 5, generator=Rng(1).torch())
    torch.testing.assert_close(layer.base(x) + 3.0 * (x @ a.T @ b.T), layer(x), rtol=1e-4, atol=1e-4)


def test_a_serial_mixture_after_a_bias_is_no_lora_and_a_parallel_one_is():
    with pytest.raises(ModelError, match="also acts on the bias of the module before it, which a LoRA cannot change"):
        made(activation="identity").as_lora()
    layer = made(activation="identity", placement="parallel")
    b, a = layer.as_lora()
    x = torch.randn(6, 5, generator=Rng(1).torch())
    torch.testing.assert_close(layer.base(x) + 3.0 * (x @ a.T @ b.T), layer(x), rtol=1e-4, atol=1e-4)


def test_ht_12_what_is_not_linear_refuses_to_fold_and_says_why():
    with pytest.raises(ModelError) as told:
        made().folded()
    assert str(told.value) == (
        "adapter.activation is 'gelu', so the mixture is not linear and cannot be folded into weights; keep it as an "
        "adapter, or train with adapter.activation = 'identity'"
    )
    with pytest.raises(ModelError, match=r"adapter.gate is 'token': the gates differ between tokens.*gate = 'static'"):
        made(activation="identity", gate="token").folded()
    with pytest.raises(ModelError, match=r"adapter.activation is 'gelu'"):
        made(placement="parallel").as_lora()


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from(GATES))
def test_gates_are_above_zero_and_sum_to_one_and_one_branch_has_it_all(seed, branches, gate):
    layer = made(branches=branches, seed=seed, gate=gate)
    gates = layer.gates(torch.randn(7, 2, generator=Rng(seed).torch()))
    assert gates.shape == ((7, branches) if gate == "token" else (branches,))
    assert bool((gates > 0).all())
    torch.testing.assert_close(gates.sum(-1), torch.ones(gates.shape[:-1]))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.permutations(range(3)), st.sampled_from(GATES))
def test_the_order_of_branches_does_not_matter(seed, order, gate):
    layer = made(seed=seed, gate=gate)
    x = torch.randn(4, 5, generator=Rng(seed).torch())
    before = layer(x)
    layer.experts = tuple(layer.experts[place] for place in order)
    with torch.no_grad():
        for name in ("gate", "gate_weight", "gate_bias"):
            if hasattr(layer, name):
                getattr(layer, name).copy_(getattr(layer, name)[list(order)].clone())
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_keeps_its_dtype_and_the_ends_theirs(dtype):
    layer = made(nn.Linear(5, 4).to(dtype))
    assert layer(torch.randn(2, 5, dtype=dtype)).dtype == dtype
    assert layer.down.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(made()(torch.randn(2, 5))).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rank": 0}, "adapter.rank is 0; it must be a whole number of at least 1"),
        ({"branches": True}, "adapter.branches is True"),
        ({"gate": "tokens"}, r"adapter.gate is 'tokens' \(did you mean 'token'\?\); it must be one of uniform, static"),
        ({"activation": "relu"}, "adapter.activation is 'relu'.*; it must be one of gelu, identity"),
        ({"placement": "series"}, "adapter.placement is 'series'"),
        ({"trained": "none"}, "adapter.trained is 'none'"),
        ({"sites": ()}, r"adapter.sites is \(\); it must be a tuple of at least 1 and of at most 2 entries"),
        ({"sites": ("attention", "attention")}, "adapter.sites is .*; give each once"),
        ({"sites": ("mlp",)}, "adapter.sites is 'mlp'; it must be one of attention, feed-forward"),
        ({"alpha": 0.0}, "adapter.alpha is 0.0; it must be a finite number above 0"),
        ({"deviation": -1.0}, "adapter.deviation is -1.0"),
        ({"deviation": 0.0}, "all branches would be equal and stay equal in training"),
    ],
)
def test_settings_out_of_range_are_refused(values, told):
    with pytest.raises(ConfigError, match=told):
        MixtureSettings(**{"rank": 2, "branches": 2, "num_slots": 2} | values)
