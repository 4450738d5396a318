"""Every method, adapter and task on a base in 16 bits, and each kind of adapter on quantised bases."""

import pytest
import torch
from promises import Build, copied, play, same, tensors
from small_federation import BERT, GPT2, LLAMA, VIT, WIDE, bases, small
from small_federation import mixtures as federation_of_mixtures
from test_contract import APART, REAL, across, method_of, real, shared

from fedquilt.adapters.lora.module import is_transposed, merged_weights
from fedquilt.adapters.mixture.inject import folded_weights, mixtures
from fedquilt.methods import METHODS

SHORT = {"dtype": torch.bfloat16}
QUANTISED = {
    "int8": {"dtype": torch.float32, "quantization": "int8"},
    "nf4": {"dtype": torch.bfloat16, "quantization": "nf4"},
}
KINDS = {
    "lora-images": real("fedit"),
    "lora-sentences": real("fedit", model=BERT, budgets=(1, 2, 3)),
    "lora-conv1d": real("flora", model=GPT2, budgets=(1, 2, 3), ranks=(2, 4, 3)),
    "lora-language": real("fedex-lora", model=LLAMA, budgets=(1, 2, 3)),
    "triple": across("h2tune", (VIT, LLAMA), private_steps=1),
    "mixture": shared((VIT, WIDE)),
}
ROWS = {method_of(name): row for name, row in reversed(REAL.items())}  # the first row of each method
ROWS |= {name: APART[name] for name in ("fedit-llama-bert", "flora-apart")}
CASES = {f"{name}-bfloat16": (row.build, SHORT) for name, row in ROWS.items()}
CASES |= {f"{name}-{base}": (build, options) for name, build in KINDS.items() for base, options in QUANTISED.items()}


def on(options, build: Build) -> Build:
    def made():
        with bases(**options):
            return build()

    return made


def untrained(setup):
    """Everything in the clients' models but the trained tensors."""
    found = []
    for bench in {id(client.bench): client.bench for client in setup.clients.values()}.values():
        kept = {
            name: tensor.clone() for name, tensor in bench.model.state_dict().items() if name not in bench.layout.depth
        }
        assert kept
        found.append(kept)
    return found


@pytest.mark.parametrize("case", CASES)
def test_rounds_resume_to_the_bit_send_float32_and_leave_the_base(case):
    build, options = CASES[case]
    setup = on(options, build)()
    before = untrained(setup)
    whole = play(setup, num_rounds=2)
    assert same(untrained(setup), before)
    sent = [tensor for tensor in tensors(whole.end) if tensor.is_floating_point()]
    assert sent
    assert {tensor.dtype for tensor in sent} <= {torch.float32, torch.float64}
    assert all(tensor.isfinite().all() for tensor in sent)
    assert not same(
        tensors(whole.states[0]) + tensors(whole.kept[0]), tensors(whole.states[2]) + tensors(whole.kept[2])
    )
    memories = {client: copied(memory) for client, memory in whole.kept[1].items()}
    again = play(on(options, build)(), num_rounds=2, start=1, state=copied(whole.states[1]), memories=memories)
    assert same(again.end, whole.end)


def test_every_method_has_a_case():
    assert {f"{name}-bfloat16" for name in METHODS} <= CASES.keys()


class Plain(torch.nn.Module):
    """A linear module with this weight (d_out, d_in)."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        return torch.nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


def drawn(params):
    """The tensors with small random values in place of zeros, so that adapters have an effect."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: tensor if tensor.any() else 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in params.items()
    }


def merged_logits(bench, batch, found, weights):
    """The logits of the model with plain linear modules of these merged weights in place of its adapters."""
    for path, adapter in found.items():
        weight = weights[f"{path}.weight"]
        assert weight.shape == adapter.base.weight.shape
        bias = weights.get(f"{path}.bias", adapter.bias)
        plain = Plain(weight.T if is_transposed(adapter.base) else weight, bias)
        parent, _, child = path.rpartition(".")
        setattr(bench.model.get_submodule(parent), child, plain)
    return bench.forward(batch)[0].float()


BASES = {"float32": {}, "bfloat16": SHORT, **QUANTISED}


@pytest.mark.parametrize("model", [VIT, BERT, GPT2, LLAMA])
@pytest.mark.parametrize("base", BASES)
def test_merged_lora_computes_what_the_live_adapters_do(model, base):
    with bases(**BASES[base]):
        scene = small(model, budgets=(1,), sizes=(5,), dropout=0.0)
    bench, client = scene.bench, scene.clients[0]
    bench.load(drawn(client.initial))
    with torch.no_grad():
        live = bench.forward(client.train)[0].float()
        made = merged_logits(bench, client.train, bench.adapters, merged_weights(bench.adapters))
    torch.testing.assert_close(made, live, rtol=0, atol=tolerance(base) * float(live.abs().max()))


@pytest.mark.parametrize("placement", ["serial", "parallel"])
@pytest.mark.parametrize("base", BASES)
def test_merged_mixtures_compute_what_the_live_ones_do(placement, base):
    with bases(**BASES[base]):
        scene = federation_of_mixtures((BERT,), activation="identity", placement=placement)
    client = scene.clients[0]
    client.bench.load(drawn(client.initial))
    found = mixtures(client.bench.model)
    with torch.no_grad():
        live = client.bench.forward(client.train)[0].float()
        made = merged_logits(client.bench, client.train, found, folded_weights(found))
    torch.testing.assert_close(made, live, rtol=0, atol=tolerance(base) * float(live.abs().max()))


def tolerance(base):
    return 4 * torch.finfo(BASES[base].get("dtype", torch.float32)).eps
