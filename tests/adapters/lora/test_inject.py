import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from torch import nn

from fedquilt.adapters.lora.inject import adapters, all_linear, initial, inject, layout, load, remove, trainable
from fedquilt.adapters.lora.module import is_linear
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import Blocks
from fedquilt.models.hf import load_model
from fedquilt.models.loaded import Loaded

SETTINGS = LoraSettings(rank=2, alpha=4.0)
TINY = [
    ("tiny:vit", "image-classification"),
    ("tiny:bert", "sequence-classification"),
    ("tiny:distilbert", "sequence-classification"),
    ("tiny:llama", "sequence-classification"),
    ("tiny:gemma3", "causal-lm"),
    ("tiny:qwen", "causal-lm"),
    ("tiny:gpt2", "causal-lm"),
]


def loaded(name: str, task: str) -> Loaded:
    return load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0))


def inputs(task: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if task == "image-classification":
        return {"pixel_values": torch.randn(2, 1, 28, 28, generator=generator)}
    return {"input_ids": torch.randint(4, 200, (2, 9), generator=generator), "attention_mask": torch.ones(2, 9).long()}


@pytest.mark.parametrize(("name", "task"), TINY)
def test_fresh_adapters_change_nothing_to_the_bit_and_nothing_requires_a_gradient(name, task):
    found = loaded(name, task)
    before = found.model(**inputs(task)).logits
    injected = inject(found.model, found.blocks, SETTINGS, found.targets, found.head)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    load(trainable(found.model, where), initial(where, found.model)(Rng(1)))
    assert torch.equal(found.model(**inputs(task)).logits, before)
    assert injected == adapters(found.model)
    assert len(injected) == 2 * len(found.targets)
    assert not any(parameter.requires_grad for parameter in found.model.parameters())


@pytest.mark.parametrize(("name", "task"), TINY)
def test_layout_names_the_models_own_parameters_by_depth_with_the_head_last(name, task):
    found = loaded(name, task)
    inject(found.model, found.blocks, SETTINGS, found.targets, found.head)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    depths = list(where.depth.values())
    adapted = [depth for depth in depths if depth is not None]
    assert adapted == sorted(adapted)
    assert set(adapted) == {0, 1}
    assert depths[len(adapted) :] == [None] * len(found.head)
    assert where.head == frozenset(found.head)
    parameters = dict(found.model.named_parameters())
    assert {id(one) for one in trainable(found.model, where).values()} == {id(parameters[name]) for name in where.depth}
    assert where.shapes == {name: tuple(parameters[name].shape) for name in where.depth}


OUTSIDE = {
    ("tiny:vit", "image-classification"): {"classifier"},  # PEFT knows no head of a classifier of images
    ("tiny:bert", "sequence-classification"): {"bert.pooler.dense"},
    ("tiny:distilbert", "sequence-classification"): {"pre_classifier"},
}
"""What PEFT adapts outside the blocks, where no layer is that a client could train."""


@pytest.mark.parametrize(("name", "task"), TINY)
def test_all_linear_is_pefts_all_linear_inside_the_blocks(name, task):
    found = loaded(name, task)
    injected = inject(found.model, found.blocks, SETTINGS, all_linear(found.model, found.blocks), found.head)
    config = LoraConfig(target_modules="all-linear", task_type=TASKS[task].peft_type)
    # get_peft_model itself fails for DistilBERT, whose pre_classifier it would both adapt and save
    adapted = _maybe_include_all_linear_layers(config, loaded(name, task).model).target_modules
    outside = {path for path in adapted if found.blocks.depth(path) is None}
    assert injected.keys() == adapted - outside
    assert outside == OUTSIDE.get((name, task), set())
    assert len(injected) > 2 * len(found.targets)


@pytest.mark.parametrize("num_layers", [12, 32])
def test_layer_1_is_neither_layer_10_nor_layer_11(num_layers):
    found = load_model(f"tiny:vit?layers={num_layers}", "image-classification", num_classes=3, rng=Rng(0))
    inject(found.model, found.blocks, SETTINGS, found.targets)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    for layer in (1, 10, 11):
        names = where.names([layer])
        assert names == tuple(
            f"vit.layers.{layer}.attention.{module}.{factor}"
            for module in ("q_proj", "v_proj")
            for factor in ("lora_A", "lora_B")
        )


@pytest.fixture(scope="module")
def deep():
    """A layout and the gradient's path of a model of 12 blocks."""
    found = load_model("tiny:vit?layers=12&width=16", "image-classification", num_classes=3, rng=Rng(0))
    inject(found.model, found.blocks, SETTINGS, found.targets)
    where = layout(found.model, found.blocks, found.architecture)
    values = initial(where, found.model)(Rng(1))
    values = {name: torch.full_like(value, 0.1) if "lora_B" in name else value for name, value in values.items()}
    load(trainable(found.model, where), values)
    return found, where


@settings(max_examples=20, deadline=None)
@given(layers=st.sets(st.integers(0, 11), min_size=1))
def test_any_set_of_layers_trains_exactly_its_own_tensors(deep, layers):
    found, where = deep
    parameters = trainable(found.model, where)
    chosen = {name: parameters[name] for name in where.names(layers)}
    assert len(chosen) == 4 * len(layers)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    try:
        found.model(**inputs("image-classification")).logits.square().sum().backward()
        got = {name for name, parameter in found.model.named_parameters() if parameter.grad is not None}
        moved = {name for name in got if bool(parameters[name].grad.abs().sum() > 0)}
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
    assert got == moved == set(chosen)


def test_the_start_is_by_seed_and_keeps_the_head_as_loaded():
    found = loaded("tiny:vit", "image-classification")
    inject(found.model, found.blocks, SETTINGS, found.targets)
    where = layout(found.model, found.blocks, found.architecture, found.head)
    head = found.model.classifier.weight.detach().clone()
    make = initial(where, found.model)
    with torch.no_grad():
        found.model.classifier.weight.zero_()  # a client has trained meanwhile
    first, again, other = make(Rng(1)), make(Rng(1)), make(Rng(2))
    assert list(first) == list(where.depth)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(first["classifier.weight"], head)
    assert torch.equal(other["classifier.weight"], head)
    name = "vit.layers.1.attention.v_proj.lora_A"
    assert not torch.equal(first[name], other[name])
    first["classifier.weight"].zero_()
    assert torch.equal(make(Rng(1))["classifier.weight"], head)


def test_removed_adapters_leave_the_model_as_it_was():
    found = loaded("tiny:gpt2", "causal-lm")
    names = [name for name, _ in found.model.named_parameters()]
    before = found.model(**inputs("causal-lm")).logits
    inject(found.model, found.blocks, SETTINGS, found.targets)
    for adapter in adapters(found.model).values():
        torch.nn.init.ones_(adapter.lora_A)
        torch.nn.init.ones_(adapter.lora_B)
    assert not torch.equal(found.model(**inputs("causal-lm")).logits, before)
    taken = remove(found.model)
    assert [name for name, _ in found.model.named_parameters()] == names
    assert torch.equal(found.model(**inputs("causal-lm")).logits, before)
    assert float(taken["transformer.h.0.attn.c_attn.lora_A"].sum()) == 2 * 32


def test_a_target_takes_the_end_of_a_path_and_ranks_follow_their_pattern():
    found = loaded("tiny:bert", "sequence-classification")
    settings = LoraSettings(rank=2, alpha=4.0, targets=("attention.output.dense",), rank_pattern={"layer.1.*": 5})
    injected = inject(found.model, found.blocks, settings)
    assert {name: adapter.lora_A.shape[0] for name, adapter in injected.items()} == {
        "bert.encoder.layer.0.attention.output.dense": 2,
        "bert.encoder.layer.1.attention.output.dense": 5,
    }
    assert injected["bert.encoder.layer.1.attention.output.dense"].scaling == 4.0 / 5


def test_parameter_counts_of_vit_base():
    found = load_model("shape:vit-b16", "image-classification", num_classes=10, rng=Rng(0), meta=True)
    inject(found.model, found.blocks, LoraSettings(rank=16, alpha=16.0), found.targets)
    where = layout(found.model, found.blocks, found.architecture)
    parameters = trainable(found.model, where)
    for layer in range(12):
        assert sum(parameters[name].numel() for name in where.names([layer])) == 49_152
    assert sum(parameter.numel() for parameter in parameters.values()) == 589_824
    assert all(parameter.is_meta for parameter in parameters.values())


def test_targets_that_match_nothing_are_told_with_those_there_are():
    found = loaded("tiny:vit", "image-classification")
    with pytest.raises(
        ModelError, match=r"holds 'q_pro', which names no linear.*did you mean 'q_proj'.*attention\.v_pr"
    ):
        inject(found.model, found.blocks, SETTINGS, ("q_pro",))
    with pytest.raises(ModelError, match=r"'classifier', which names no linear module inside the blocks"):
        inject(found.model, found.blocks, SETTINGS, ("q_proj", "classifier"))
    with pytest.raises(ModelError, match=r"adapter\.targets is empty.*mlp\.fc1"):
        inject(found.model, found.blocks, SETTINGS)
    with pytest.raises(ModelError, match=r"head's parameter 'score.weight' is not in the model"):
        inject(found.model, found.blocks, SETTINGS, ("q_proj",), ("score.weight",))
    assert not adapters(found.model)
    with pytest.raises(ModelError, match=r"head's parameter 'score.weight' is not in the model"):
        layout(found.model, found.blocks, found.architecture, ("score.weight",))


class Scaled(nn.Module):
    """A matrix that is called with the scale of its input, as quantised layers of some models are."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features, self.weight = 4, 4, nn.Parameter(torch.ones(4, 4))

    def forward(self, x, scale):
        return x @ self.weight.T * scale


def test_modules_that_take_more_than_an_input_are_no_place_for_an_adapter():
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleDict({"query": Scaled(), "value": nn.Linear(4, 4)}) for _ in range(2))
    settings = LoraSettings(rank=2, alpha=2.0)
    assert not is_linear(Scaled())
    with pytest.raises(ModelError, match=r"'query', which names no linear module inside the blocks; there are: value"):
        inject(model, Blocks("layers", 2), settings, ("query",))


def test_a_model_without_linear_modules_is_told_so():
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Sequential(nn.Conv1d(4, 4, 1)) for _ in range(2))
    with pytest.raises(ModelError, match=r"no linear module inside its blocks \(layers\), so there is nothing"):
        inject(model, Blocks("layers", 2), LoraSettings(rank=2, alpha=2.0))
