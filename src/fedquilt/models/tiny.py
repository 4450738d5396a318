"""Small random models, built from a config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fedquilt.core.rng import Rng
from fedquilt.models.hf_files import config_from, model_from
from fedquilt.models.shapes import Values


def new_vit(architecture: Mapping[str, Any], classes: Sequence[str], rng: Rng) -> nn.Module:
    """A ViT for image classification with random weights from ``rng``, all of them trainable.

    ``architecture`` holds the keyword arguments of the Hugging Face ``ViTConfig``; ``classes`` name the outputs.
    """
    values: Values = {"model_type": "vit", **architecture, "id2label": dict(enumerate(classes))}
    values["label2id"] = {name: number for number, name in enumerate(classes)}
    with rng.scope():
        model: nn.Module = model_from(config_from(values), "image-classification")
    return model


def new_causal_lm(values: Values, rng: Rng) -> nn.Module:
    """A causal language model of these config values with random weights from ``rng``, all of them trainable."""
    with rng.scope():
        model: nn.Module = model_from(config_from(values), "causal-lm")
    return model
