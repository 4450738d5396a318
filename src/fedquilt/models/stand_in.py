"""A small random model in a real one's place: of its architecture and width, two blocks deep."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch

from fedquilt.core.rng import Rng
from fedquilt.models.causality import ordinary_tokens, sees_ahead

_BLOCKS = 2
_LARGEST = 250_000_000  # parameters, about a gigabyte; a larger model is tried when its weights are there

Make = Callable[[Any], Any]
"""A model of a config, with weights drawn from torch's generator, on torch's default device."""


def stand_in(config: Any, make: Make, rng: Rng) -> Any:
    """A model of this config with random weights and at most two blocks, or None if even that is large."""
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
            # in float32, as a real one's weights are read whatever they were saved in: padding moves half precision
            model = make(small).float().requires_grad_(False).eval()
            row = torch.tensor([ordinary_tokens(model, 2)])
            model.base_model(input_ids=row, attention_mask=torch.ones_like(row))
    except Exception:  # one of many kinds of model that cannot be cut so: the whole one is tried when it is loaded
        return None
    return model


def shortened(config: Any, num_layers: int) -> Any:
    """The config, changed in place to one of the first ``num_layers`` blocks only."""
    config.num_hidden_layers = num_layers
    if isinstance(kinds := getattr(config, "layer_types", None), list):
        config.layer_types = kinds[:num_layers]
    return config


def make_decoder(config: Any, make: Make, rng: Rng) -> None:
    """Change the config of an encoder whose tokens see ahead, and which can be a decoder, into a decoder's, in place.

    Such an encoder has ``is_decoder`` in its config, as some have that need it not. One that is too large to be tried
    in small stays as it is.
    """
    if getattr(config, "is_decoder", None) is False:
        small = stand_in(config, make, rng)
        config.is_decoder = small is not None and sees_ahead(small)
