import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.adapters.lora.module import is_linear
from fedquilt.adapters.sites import SLOT_RULES, Place, output_projections, places, slots_of
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import Blocks
from fedquilt.models.hf import load_model
from fedquilt.models.hf_files import auto_class, config_from, model_from
from fedquilt.models.layers import find_blocks
from fedquilt.models.shapes import tiny

ENDS = {
    "vit": ("attention.o_proj", "mlp.fc2"),
    "bert": ("attention.output.dense", "output.dense"),
    "distilbert": ("attention.out_lin", "ffn.lin2"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma3": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
}


def on_meta(values):
    config = config_from(values)
    task = next(name for name in TASKS if type(config) in auto_class(name)._model_mapping)
    with torch.device("meta"):
        model = model_from(config, task)
    return model, find_blocks(model)


@pytest.mark.parametrize(("kind", "ends"), ENDS.items())
def test_each_block_has_one_module_that_ends_its_attention_and_one_that_ends_its_feed_forward_part(kind, ends):
    model, blocks = on_meta(tiny(kind + "?layers=3", 64, 64))
    found = output_projections(model, blocks)
    assert {name: tuple(site) for name, site in found.items()} == {
        f"{blocks.path}.{layer}.{end}": (part, layer)
        for layer in range(3)
        for part, end in zip(("attention", "feed-forward"), ends, strict=True)
    }


def test_only_the_parts_and_blocks_that_are_wanted():
    model, blocks = on_meta(tiny("llama?layers=4", 64, 64))
    found = output_projections(model, blocks, ("feed-forward",), (3, 2))
    assert [*found] == ["model.layers.2.mlp.down_proj", "model.layers.3.mlp.down_proj"]


@pytest.mark.parametrize(
    ("name", "task"),
    [("tiny:vit", "image-classification")]
    + [(f"tiny:{kind}", "sequence-classification") for kind in ("bert", "distilbert")]
    + [
        (f"tiny:{kind}", "causal-lm")
        for kind in ("llama", "gemma", "gemma2", "gemma3", "qwen", "qwen2", "qwen3", "gpt2")
    ],
)
def test_every_linear_module_of_every_built_in_architecture_has_one_site_of_its_own(name, task):
    found = load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(0), meta=True)
    linears = [n for n, m in found.model.named_modules() if is_linear(m) and found.blocks.depth(n) is not None]
    at = places(linears, found.blocks)
    assert at.keys() == set(linears)
    assert len(set(at.values())) == len(linears) >= 4 * found.blocks.num_layers


def test_modules_without_a_place_are_refused():
    blocks = Blocks("layers", 2)
    with pytest.raises(ModelError, match=r"module 'layers\.0\.odd' has no place among the sites query, key"):
        places(["layers.0.odd"], blocks)
    with pytest.raises(
        ModelError, match=r"block 0 has two modules at the site 'query', one of them 'layers\.0\.b\.query'"
    ):
        places(["layers.0.a.query", "layers.0.b.query"], blocks)
    with pytest.raises(ModelError, match="the site 'query' is in 1 of 2 blocks"):
        places(["layers.0.query"], blocks)
    assert places(["layers.0.odd"], Blocks("layers", 1), {"own": ("odd",)}) == {"layers.0.odd": Place("own", 0)}


def test_a_model_whose_sites_are_not_known_is_refused_by_name_with_its_modules():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model, blocks = on_meta({"model_type": "gpt_neox", "vocab_size": 64, **sizes})
    with pytest.raises(ModelError) as told:
        output_projections(model, blocks)
    assert str(told.value) == (
        "GPTNeoXForSequenceClassification: block 0 has no linear module that is known to end its attention part; its "
        "linear modules are: attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h; "
        "adapters after attention and feed-forward are for ViT, BERT, DistilBERT, LLaMA, Gemma, Gemma 2 and Gemma 3, "
        "Qwen2, Qwen3, GPT-2"
    )


def test_a_block_with_several_feed_forward_ends_is_refused():
    def block():
        expert = [torch.nn.ModuleDict({"down_proj": torch.nn.Linear(2, 2)}) for _ in range(2)]
        return torch.nn.ModuleDict({"o_proj": torch.nn.Linear(2, 2), "a": expert[0], "b": expert[1]})

    experts = torch.nn.ModuleList(block() for _ in range(2))
    model = torch.nn.ModuleDict({"layers": experts})
    with pytest.raises(ModelError, match=r"block 0 has 2 modules that end its feed-forward part \(a.down_proj, b.down"):
        output_projections(model, Blocks("layers", 2))


@pytest.mark.parametrize("layers", [(), (4,), (-1, 2)])
def test_blocks_that_are_not_there_are_refused(layers):
    model, blocks = on_meta(tiny("llama?layers=4", 64, 64))
    with pytest.raises(ModelError, match="give some of 0 to 3"):
        output_projections(model, blocks, layers=layers)


def test_an_unknown_part_or_none_is_refused():
    model, blocks = on_meta(tiny("llama", 64, 64))
    with pytest.raises(ConfigError, match=r"adapter.sites holds 'atention' \(did you mean 'attention'\?\)"):
        output_projections(model, blocks, ("atention",))
    with pytest.raises(ConfigError, match=r"adapter\.sites is empty"):
        output_projections(model, blocks, ())


def test_slots_by_hand():
    assert slots_of(6, 4) == (0, 1, 1, 2, 3, 3)  # floor of 1/3, 1, 5/3, 7/3, 3, 11/3
    assert slots_of(2, 4) == (1, 3)
    assert slots_of(6, 2, "spaced") == (None, None, 0, None, None, 1)
    assert slots_of(7, 3, "spaced") == (None, None, 0, None, 1, None, 2)
    assert slots_of(5, 3, "top") == (None, None, 0, 1, 2)
    assert slots_of(2, 3, "top") == (1, 2)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(SLOT_RULES))
def test_slots_rise_with_depth_and_the_last_block_has_the_last_slot(num_layers, num_slots, rule):
    if rule == "spaced":
        num_layers, num_slots = max(num_layers, num_slots), min(num_layers, num_slots)
    slots = slots_of(num_layers, num_slots, rule)
    shared = [slot for slot in slots if slot is not None]
    assert len(slots) == num_layers
    assert shared == sorted(shared)
    assert set(shared) <= set(range(num_slots))
    if rule != "relative":
        assert slots[-1] == num_slots - 1
        assert len(shared) == len(set(shared)) == min(num_layers, num_slots)
    if num_layers == num_slots:
        assert slots == tuple(range(num_layers))
    if rule == "relative" and num_slots <= num_layers:
        assert set(shared) == set(range(num_slots))


def test_impossible_slots_are_refused():
    with pytest.raises(
        ConfigError, match=r"adapter.slot_rule is 'tops' \(did you mean 'top'\?\); it must be one of rel"
    ):
        slots_of(3, 3, "tops")
    with pytest.raises(ValueError, match="3 layers and 0 slots"):
        slots_of(3, 0)
    with pytest.raises(ValueError, match="4 slots cannot be spaced over 3 layers"):
        slots_of(3, 4, "spaced")
