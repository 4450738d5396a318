import torch

from fedquilt.core.rng import Rng
from fedquilt.models.tiny import new_vit
from fedquilt.models.weights_digest import digest

SMALL = {
    "image_size": 14,
    "patch_size": 7,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def test_a_new_vit_is_trainable_by_seed_and_knows_its_classes():
    model = new_vit(SMALL, ("alpha", "beta", "gamma"), Rng(1))
    assert model(pixel_values=torch.zeros(2, 1, 14, 14)).logits.shape == (2, 3)
    assert model.config.id2label == {0: "alpha", 1: "beta", 2: "gamma"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert digest(model) == digest(new_vit(SMALL, ("alpha", "beta", "gamma"), Rng(1)))
    assert digest(model) != digest(new_vit(SMALL, ("alpha", "beta", "gamma"), Rng(2)))
