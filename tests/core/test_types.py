"""Depth by the model's own block list, layouts, and the values of the contract."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.rng import Rng
from fedquilt.core.types import Blocks, Budget, Layout, Order, Profile, Reply

SUFFIXES = ["", ".weight", ".attention.query.lora_A", ".mlp.layers.3.weight", ".1.10.11"]


@pytest.mark.parametrize("path", ["vit.encoder.layer", "model.layers", "h", "a.0.blocks"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_depth_is_the_index_for_every_block_of_a_deep_model(path, suffix):
    blocks = Blocks(path, 48)
    assert [blocks.depth(f"{path}.{index}{suffix}") for index in range(48)] == list(range(48))


@pytest.mark.parametrize(
    "name",
    [
        "vit.layer",  # the list itself
        "vit.layer.",
        "vit.layernorm.1.weight",  # begins with the path's letters, not with the path
        "vit.layer_norm.weight",
        "vit.layers.1.weight",
        "vit.layer1.weight",
        "vit.layer.norm.weight",
        "vit.layer.1a.weight",
        "vit.layer.-1.weight",
        "vit.layer.1_0.weight",
        "vit.layer. 1.weight",
        "encoder.vit.layer.1.weight",  # holds the path, further in
        "base_model.model.vit.layer.1.weight",
        "xvit.layer.1.weight",
        "vit.embeddings.1.layer.2",
        "classifier.weight",
        "1.weight",
        "",
    ],
)
def test_depth_is_none_outside_the_block_list(name):
    assert Blocks("vit.layer", 12).depth(name) is None


@given(st.integers(0, 47), st.text("ab.019_", max_size=8))
def test_depth_reads_the_first_index_only(index, rest):
    assert Blocks("m.layers", 48).depth(f"m.layers.{index}.{rest}") == index


def layout(num_layers=12):
    depth = {f"m.{index}.{part}": index for index in range(num_layers) for part in ("lora_A", "lora_B")}
    depth = {"embed": None, **depth, "head.weight": None}
    return Layout("toy", num_layers, depth, dict.fromkeys(depth, (2, 3)))


def test_head_is_what_lies_in_no_block():
    assert layout().head == {"embed", "head.weight"}
    assert Layout("toy", 1, {"m.0.a": 0}, {"m.0.a": (1,)}).head == frozenset()


def test_names_are_those_of_the_given_blocks_in_the_layouts_order():
    assert layout().names([1]) == ("m.1.lora_A", "m.1.lora_B")
    assert layout().names([11, 0, 10]) == layout().names({0, 10, 11})
    assert layout().names([10, 0]) == ("m.0.lora_A", "m.0.lora_B", "m.10.lora_A", "m.10.lora_B")
    assert layout().names([]) == ()
    assert layout().names([99]) == ()
    assert set(layout().names(range(12))) == layout().depth.keys() - layout().head
    assert layout().names(layer for layer in (2, 2)) == ("m.2.lora_A", "m.2.lora_B")


def test_the_words_of_the_contract_cannot_be_changed_after_they_are_said():
    values = [
        (Order({}), "params"),
        (Reply(0, {"a": torch.ones(1)}, 2.0), "weight"),
        (Profile(0, 5, "toy", Budget(3), "image-classification"), "num_examples"),
        (Budget(3), "layers"),
        (Rng(0), "seed"),
    ]
    for value, field in values:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 1)


def test_orders_and_replies_do_not_share_their_empty_defaults():
    assert Order({}).settings is not Order({}).settings
    assert Reply(0, {}, 1.0).metrics is not Reply(1, {}, 1.0).metrics
    assert Order({}).rng == Rng(0)
