"""Full fine-tuning: the model's own weights as what is trained."""

import pytest
import torch
import transformers

from fedquilt.adapters.full import full_layout, initial_full
from fedquilt.core.errors import ModelError
from fedquilt.core.rng import Rng
from fedquilt.models.hf import load_model


def loaded(name, task="image-classification", **more):
    return load_model(name, task, num_classes=None if task == "causal-lm" else 3, rng=Rng(1), **more)


def test_every_weight_has_a_place_embeddings_with_the_first_block_and_the_last_norm_with_the_last():
    one = loaded("tiny:vit?layers=3&width=16")
    where = full_layout(one.model, one.blocks, "vit", one.head)
    assert where.shapes == {name: tuple(value.shape) for name, value in one.model.named_parameters()}
    assert {name for name, depth in where.depth.items() if depth is None} == set(one.head)
    outside = {name: depth for name, depth in where.depth.items() if one.blocks.depth(name) is None}
    assert {outside[name] for name in outside if "embeddings" in name} == {0}
    assert {outside[name] for name in outside if name.startswith("vit.layernorm")} == {2}
    assert all(where.depth[name] == own for name in where.depth if (own := one.blocks.depth(name)) is not None)
    depths = [depth for depth in where.depth.values() if depth is not None]
    assert depths == sorted(depths)
    assert list(where.depth)[-len(one.head) :] == list(one.head)


def test_a_head_that_rests_is_not_trained():
    one = loaded("tiny:vit?layers=2&width=16")
    where = full_layout(one.model, one.blocks, "vit", (), one.head)
    assert set(where.depth) == {name for name, _ in one.model.named_parameters()} - set(one.head)
    assert not where.head


def test_tied_embeddings_stand_once():
    one = loaded("tiny:gpt2?layers=2&width=16", "causal-lm")
    assert isinstance(one.model, transformers.PreTrainedModel)
    where = full_layout(one.model, one.blocks, "gpt2", one.head)
    assert sum(name.endswith(("wte.weight", "lm_head.weight")) for name in where.depth) == 1
    assert len(where.depth) == len({value.data_ptr() for value in one.model.parameters()})


def test_a_head_that_is_not_there_is_refused():
    one = loaded("tiny:vit?layers=2&width=16")
    with pytest.raises(ModelError, match="the head's parameter 'gone' is not in the model"):
        full_layout(one.model, one.blocks, "vit", ("gone",))


def test_training_starts_from_the_weights_as_they_were_and_draws_nothing():
    one = loaded("tiny:vit?layers=2&width=16")
    where = full_layout(one.model, one.blocks, "vit", one.head)
    before = {name: value.detach().clone() for name, value in one.model.named_parameters()}
    start = initial_full(where, one.model)
    with torch.no_grad():
        for value in one.model.parameters():
            value.add_(1)
    for seed in (1, 2):
        made = start(Rng(seed))
        assert made.keys() == before.keys()
        assert all(torch.equal(made[name], before[name]) for name in made)


def test_on_meta_the_start_takes_no_memory():
    one = loaded("shape:llama-3-8b", "causal-lm", meta=True)
    where = full_layout(one.model, one.blocks, "llama", one.head)
    start = initial_full(where, one.model)(Rng(0))
    assert sum(value.numel() for value in start.values()) == 8_030_261_248
    assert max(value.untyped_storage().nbytes() for value in start.values()) <= 4
