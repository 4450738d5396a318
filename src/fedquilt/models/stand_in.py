"""A small random stand-in for a model: the same architecture and width, two blocks deep."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch

from fedquilt.core.rng import Rng
from fedquilt.models.causality import ordinary_tokens, sees_ahead

_BLOCKS = 2
_LARGEST = 250_000_000  # parameters, about 1 GB; a larger model is tried only once its weights are loaded

Make = Callable[[Any], Any]
"""Makes a model of a config with random weights from torch's generator, on torch's default device."""


def stand_in(config: Any, make: Make, rng: Rng) -> Any:
    """A model of this config with random weights and at most two blocks; None if it is too large or does not run."""
    small = deepcopy(config)
    depth = getattr(small, "num_hidden_layers", None)
    if isinstance(depth, int) and depth > _BLOCKS:
        small = shortened(small, _BLOCKS)
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in make(deepcopy(small)).parameters())
        if size > _LARGEST:
            return None
        with rng.scope(), torch.no_grad():
            # in float32, as real weights are read whatever their type; in half precision padding changes the logits
            model = make(small).float().requires_grad_(False).eval()
            row = torch.tensor([ordinary_tokens(model, 2)])
            model.base_model(input_ids=row, attention_mask=torch.ones_like(row))
    except Exception:  # many kinds of models cannot be shortened so; the whole model is then tried when it is loaded
        return None
    return model


def stand_in_for(model: Any, make: Make, rng: Rng) -> Any:
    """The stand-in for trials of a model without weights, which generates text as the model does; or None."""
    small = stand_in(model.config, make, rng.child("stand-in"))
    if small is not None and hasattr(small, "generation_config"):
        small.generation_config = model.generation_config
    return small


def shortened(config: Any, num_layers: int) -> Any:
    """Change the config in place to the first ``num_layers`` blocks only, and return it."""
    config.num_hidden_layers = num_layers
    if isinstance(kinds := getattr(config, "layer_types", None), list):
        config.layer_types = kinds[:num_layers]
    return config


def make_decoder(config: Any, make: Make, rng: Rng) -> None:
    """Change the config of an encoder that can be a decoder into a decoder's, in place.

    Only a config with ``is_decoder = false`` is changed, and only if a stand-in attends to later tokens. A model that
    is too large for a stand-in stays unchanged.
    """
    if getattr(config, "is_decoder", None) is False:
        small = stand_in(config, make, rng)
        config.is_decoder = small is not None and sees_ahead(small)
