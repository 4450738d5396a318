import warnings
from itertools import product
from typing import get_args

import pytest
import torch
from peft import PeftModel

from fedquilt.adapters.lora.inject import load, trainable
from fedquilt.adapters.lora.peft_files import save_peft
from fedquilt.adapters.mixture.inject import (
    as_lora,
    branch_of,
    check_bank,
    folded_weights,
    initial_mixture,
    inject_mixture,
    mixture_layout,
    mixtures,
    remove_mixture,
    shared_penalty,
    trained_names,
)
from fedquilt.adapters.mixture.settings import Gate, MixtureSettings, Placement
from fedquilt.adapters.sites import is_shared
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Layout
from fedquilt.models.hf import load_model
from fedquilt.models.weights_digest import digest

GATES, PLACEMENTS = get_args(Gate), get_args(Placement)
SETTINGS = MixtureSettings(rank=4, alpha=4.0, branches=3, num_slots=2)
TINY = [
    ("tiny:vit", "image-classification"),
    ("tiny:bert", "sequence-classification"),
    ("tiny:distilbert", "sequence-classification"),
    ("tiny:llama", "causal-lm"),
    ("tiny:gemma", "causal-lm"),
    ("tiny:gemma2", "causal-lm"),
    ("tiny:gemma3", "causal-lm"),
    ("tiny:qwen2", "causal-lm"),
    ("tiny:qwen3", "causal-lm"),
    ("tiny:gpt2", "causal-lm"),
]
every_model = pytest.mark.parametrize(("name", "task"), TINY)


def inputs(task, rows=2):
    generator = torch.Generator().manual_seed(0)
    if task == "image-classification":
        return {"pixel_values": torch.randn(rows, 1, 28, 28, generator=generator)}
    return {
        "input_ids": torch.randint(4, 200, (rows, 9), generator=generator),
        "attention_mask": torch.ones(rows, 9).long(),
    }


def adapted(name, task, settings=SETTINGS, layers=None, start=True):
    """A model with mixtures as training starts from them, its layout, and its parameters by name."""
    found = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
    inject_mixture(found.model, found.blocks, settings, layers)
    where = mixture_layout(found.model, found.blocks, found.architecture, found.head)
    parameters = trainable(found.model, where)
    if start:
        load(parameters, initial_mixture(where, found.model, settings)(Rng(1)))
    return found, where, parameters


def drawn(parameters, seed=5, size=0.3):
    generator = Rng(seed).torch()
    return {name: size * torch.randn(one.shape, generator=generator) for name, one in parameters.items()}


@every_model
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_ht_1_a_fresh_mixture_changes_no_bit_and_a_drawn_one_does_and_comes_out_again(name, task, placement):
    options = MixtureSettings(rank=4, alpha=4.0, branches=3, num_slots=2, placement=placement)
    bare = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
    before, weights = bare.model(**inputs(task)).logits, digest(bare.model)
    found, where, parameters = adapted(name, task, options)
    assert len(mixtures(found.model)) == 4
    assert not any(one.requires_grad for one in found.model.parameters())
    assert torch.equal(found.model(**inputs(task)).logits, before)
    local = {one: value for one, value in parameters.items() if one not in where.head}
    load(local, drawn(local, size=3.0))
    assert (found.model(**inputs(task)).logits - before).abs().max() > 1e-3
    remove_mixture(found.model)
    assert torch.equal(found.model(**inputs(task)).logits, before)
    assert digest(found.model) == weights


@pytest.mark.parametrize(("gate", "trained"), list(product(GATES, ("own", "all"))))
def test_ht_2_to_4_local_training_moves_what_it_should_and_nothing_else(gate, trained):
    """The frozen rest and, in the first form, foreign branches stay to the bit, under weight decay too."""
    options = MixtureSettings(rank=4, alpha=4.0, branches=3, num_slots=2, gate=gate, trained=trained, deviation=0.02)
    found, where, parameters = adapted("tiny:vit", "image-classification", options)
    names = trained_names(where, options, own=1)
    foreign = {name for name in parameters if is_shared(name) and branch_of(name) != 1}
    assert foreign
    assert foreign.isdisjoint(names) == (trained == "own")
    for name in names:
        parameters[name].requires_grad_(True)
    optimizer = torch.optim.AdamW([parameters[name] for name in names], lr=1e-2, weight_decay=0.1)
    before = {name: one.detach().clone() for name, one in found.model.named_parameters()}
    labels = torch.tensor([0, 2])
    for step in range(3):
        optimizer.zero_grad()
        found.model(**inputs("image-classification"), labels=labels).loss.backward()
        if step == 0:  # while up is zero, nothing before it has a gradient
            moving = {name for name in names if parameters[name].grad.any()}
            assert moving == {name for name in names if name.endswith(".up") or name in where.head}
        optimizer.step()
    moved = {name for name, one in found.model.named_parameters() if not torch.equal(one, before[name])}
    expected = set(names)
    assert moved <= expected
    assert {name for name in names if is_shared(name)} <= moved


def needed(model, task, trained):
    """Numbers that a step on a batch holds besides the weights: gradients, moments, and what autograd keeps."""
    weights, kept = {parameter.untyped_storage()._cdata for parameter in model.parameters()}, {}

    def note(tensor):
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes() // 4
        return tensor

    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**inputs(task)).logits.square().sum()
    loss.backward()
    optimizer.step()
    moments = sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.dim())
    return moments, moments // 2 + moments + sum(kept.values())


def test_ht_15_a_step_holds_two_moments_for_what_is_trained_and_less_than_full_fine_tuning():
    """The peak of real processes is measured by bench/memory.py."""
    whole = load_model("tiny:llama?width=64", "causal-lm", num_classes=None, rng=Rng(0)).model
    full_moments, full = needed(whole, "causal-lm", list(whole.parameters()))
    found, where, parameters = adapted("tiny:llama?width=64", "causal-lm")
    moments, ours = needed(found.model, "causal-lm", [parameters[name] for name in where.depth])
    assert moments == 2 * sum(parameters[name].numel() for name in where.depth)
    assert full_moments == 2 * sum(parameter.numel() for parameter in whole.parameters())
    assert ours < full / 2


def test_ht_5_the_bank_is_the_same_for_models_of_any_width_and_depth_and_unlike_ranks_are_refused():
    shared = {}
    for sizes in ("layers=3&width=16", "layers=2&width=32", "layers=5&width=64"):
        found, where, _ = adapted(f"tiny:vit?{sizes}", "image-classification", start=False)
        start = initial_mixture(where, found.model, SETTINGS)(Rng(1))
        shared[where.architecture] = {name: one for name, one in start.items() if is_shared(name)}
    assert len(shared) == 3
    first, *others = shared.values()
    assert len(first) == 2 * 2 * 3
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(other[name], first[name]) for name in first)
    check_bank(shared)
    odd = {"mixture.attention.0.0": torch.zeros(8, 8)}
    with pytest.raises(ModelError) as told:
        check_bank(shared | {"wide": odd})
    assert str(told.value) == (
        "branch 'mixture.attention.0.0' is (8, 8) in wide and (4, 4) in vit-3x16; "
        "all architectures must have the same adapter.rank"
    )


def test_no_two_branches_are_drawn_alike():
    found, where, _ = adapted("tiny:llama", "causal-lm", start=False)
    start = initial_mixture(where, found.model, SETTINGS)(Rng(1))
    branches = [one for name, one in start.items() if is_shared(name)]
    assert len({tuple(one.flatten().tolist()) for one in branches}) == len(branches) == 12


def test_blocks_of_one_slot_share_their_branches_and_a_branch_lies_at_its_shallowest_block():
    found, where, parameters = adapted("tiny:llama?layers=5", "causal-lm")
    layers = found.model.model.layers
    assert [id(block.mlp.down_proj.experts[0]) for block in layers] == [
        id(parameters[f"mixture.feed-forward.{slot}.0"]) for slot in (0, 0, 1, 1, 1)
    ]
    assert where.depth["mixture.attention.0.2"] == 0
    assert where.depth["mixture.attention.1.2"] == 2
    depths = [depth for depth in where.depth.values() if depth is not None]
    assert depths == sorted(depths)
    spaced = MixtureSettings(rank=4, alpha=4.0, branches=3, num_slots=2, slot_rule="spaced")
    found, where, _ = adapted("tiny:llama?layers=4", "causal-lm", spaced)
    assert [len(block.mlp.down_proj.experts) for block in found.model.model.layers] == [0, 3, 0, 3]
    assert "model.layers.0.mlp.down_proj.gate" not in where.depth
    assert "model.layers.1.mlp.down_proj.gate" in where.depth


def test_on_the_top_half_backward_stops_half_way():
    """Autograd keeps less than half, and branches that only lower blocks would use are not listed."""
    kept = {}
    for layers in (None, (2, 3)):
        found, where, parameters = adapted("tiny:llama?layers=4", "causal-lm", layers=layers)
        for one in parameters.values():
            one.requires_grad_(True)
        sizes = []

        def keep(one, sizes=sizes):
            sizes.append(one.numel())
            return one

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
            found.model(**inputs("causal-lm")).logits.sum().backward()
        kept[layers] = sum(sizes)
        assert ("mixture.attention.0.0" in where.depth) == (layers is None)
        assert len(mixtures(found.model)) == (8 if layers is None else 4)
    assert kept[2, 3] < 0.7 * kept[None]


@every_model
@pytest.mark.parametrize(("gate", "placement"), list(product(("uniform", "static"), PLACEMENTS)))
def test_ht_12_the_bare_model_with_folded_weights_computes_what_the_mixtures_do(name, task, gate, placement):
    options = MixtureSettings(
        4, branches=3, num_slots=2, alpha=2.0, gate=gate, placement=placement, activation="identity"
    )
    found, where, parameters = adapted(name, task, options)
    local = {one: value for one, value in parameters.items() if one not in where.head}
    load(local, drawn(local, size=1.0))
    bare = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
    without = bare.model(**inputs(task)).logits
    for active in ((0, 1, 2, 3), (1, 2), ()):
        for place, mixture in enumerate(mixtures(found.model).values()):
            mixture.active = place in active
        live = found.model(**inputs(task)).logits
        bare = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
        weights = folded_weights(mixtures(found.model))
        assert {one.rpartition(".")[0] for one in weights} == {
            one for one, m in mixtures(found.model).items() if m.active
        }
        load(dict(bare.model.named_parameters()), weights)
        told = bare.model(**inputs(task)).logits
        if active:  # what is compared must be far larger than what rounding does
            assert (live - without).abs().max() > 2e-4
            torch.testing.assert_close(told - without, live - without, rtol=1e-3, atol=5e-6)
        else:
            assert torch.equal(told, without)


@pytest.mark.parametrize(
    ("name", "task", "placement"),
    [
        ("tiny:llama", "causal-lm", "serial"),
        ("tiny:llama", "causal-lm", "parallel"),
        ("tiny:bert", "sequence-classification", "parallel"),
        ("tiny:gpt2", "causal-lm", "parallel"),
    ],
)
def test_peft_computes_with_the_written_lora_what_the_mixtures_do(name, task, placement, tmp_path):
    options = MixtureSettings(4, branches=3, num_slots=2, alpha=2.0, placement=placement, activation="identity")
    found, where, parameters = adapted(name, task, options)
    local = {one: value for one, value in parameters.items() if one not in where.head}
    load(local, drawn(local, size=1.0))
    live = found.model(**inputs(task)).logits
    params, settings = as_lora(mixtures(found.model))
    depth = dict.fromkeys(params, 0)
    layout = Layout(where.architecture, 2, depth, {one: tuple(value.shape) for one, value in params.items()})
    whole = params | {one: parameters[one].detach() for one in where.head}
    folder = tmp_path / "lora"
    save_peft(folder, whole, found.model, layout, settings, base_name=name, task=task, head=where.head)
    bare = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))
    without = bare.model(**inputs(task)).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(bare.model, str(folder)).eval()
    assert (live - without).abs().max() > 2e-4
    torch.testing.assert_close(theirs(**inputs(task)).logits - without, live - without, rtol=1e-3, atol=5e-6)


def test_there_is_nothing_to_write_as_lora_without_an_active_mixture():
    with pytest.raises(ModelError, match="there is no active mixture of adapters to write as LoRA"):
        as_lora({})


@pytest.mark.parametrize(
    ("shape", "millions", "share"),
    [("llama-3-8b", 33.6, 0.00418), ("llama-3.2-3b", 22.0, 0.00685), ("llama-3.2-1b", 8.4, 0.0068)],
)
def test_ht_11_ends_of_published_llamas_are_2_r_d_a_site_and_below_eight_thousandths_of_the_model(
    shape, millions, share
):
    found = load_model(f"shape:{shape}", "causal-lm", num_classes=None, rng=Rng(0), meta=True)
    whole = sum(one.numel() for one in found.model.parameters())
    width = found.model.config.hidden_size
    settings = MixtureSettings(rank=64, branches=3, num_slots=16)
    inject_mixture(found.model, found.blocks, settings)
    shapes = mixture_layout(found.model, found.blocks, found.architecture).shapes
    numbers = {name: torch.Size(one).numel() for name, one in shapes.items()}
    ends = sum(number for name, number in numbers.items() if name.endswith((".down", ".up")))
    bank = sum(number for name, number in numbers.items() if is_shared(name))
    gates = sum(numbers.values()) - ends - bank
    sites = 2 * found.blocks.num_layers
    assert (ends, bank, gates) == (sites * 2 * 64 * width, 3 * 16 * 2 * 64**2, sites * 3)
    assert ends / 1e6 == pytest.approx(millions, abs=0.05)
    assert ends / whole == pytest.approx(share, abs=1e-4)
    assert ends / whole <= 0.008
    assert all(one.is_meta for one in found.model.parameters())


def test_the_penalty_by_hand_and_its_gradient():
    """mu/2 ((3-1)^2 + (0-2)^2) + decay (9 + 0) = 4 mu + 9 decay, over branches alone."""
    start = {"mixture.attention.0.0": torch.tensor([[1.0]]), "mixture.attention.0.1": torch.tensor([[2.0]])}
    trained = {"mixture.attention.0.0": torch.tensor([[3.0]]), "mixture.attention.0.1": torch.tensor([[0.0]])}
    trained = {name: one.requires_grad_(True) for name, one in trained.items()}
    other = {"model.layers.0.mlp.down_proj.up": torch.tensor([100.0])}
    loss = shared_penalty(trained | other, start, mu=0.5, decay=0.1)
    assert float(loss.detach()) == pytest.approx(2.0 + 0.9)
    loss.backward()
    # mu (S - S_0) + 2 decay S
    assert [float(one.grad) for one in trained.values()] == pytest.approx([0.5 * 2 + 0.6, 0.5 * -2])
    assert float(shared_penalty(other, {}, 1.0)) == 0.0
    assert float(shared_penalty(start, start, 1.0)) == 0.0
    with pytest.raises(ValueError, match="mu is -1; it must be at least 0 and finite"):
        shared_penalty(trained, start, -1)


def test_what_cannot_be_done_is_refused():
    found, where, _ = adapted("tiny:llama", "causal-lm")
    with pytest.raises(ModelError, match="LlamaForCausalLM already has a module 'mixture'; take that out first"):
        inject_mixture(found.model, found.blocks, SETTINGS)
    with pytest.raises(ValueError, match="there is no branch 3; the branches are 0 to 2"):
        trained_names(where, SETTINGS, 3)
    with pytest.raises(ModelError, match="the head's parameter 'score' is not in the model"):
        mixture_layout(found.model, found.blocks, "llama", ("score",))
