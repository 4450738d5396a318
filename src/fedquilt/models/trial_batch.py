"""A small batch for trial forward passes, without any data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedquilt.data.table import Columns
from fedquilt.models.causality import ordinary_tokens

_ROWS, _TOKENS, _PIXELS = 2, 8, 64


def example(model: Any, prepare: Callable[[Columns], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The model's keyword arguments for two rows, on its device; ``prepare`` is that of its ``Loaded``."""
    device = next(model.parameters()).device
    if model.main_input_name == "pixel_values":
        ramp = torch.arange(_ROWS * _PIXELS * _PIXELS * 3, device=device) % 251
        return prepare({"pixel_values": ramp.to(torch.uint8).view(_ROWS, _PIXELS, _PIXELS, 3)})
    if model.main_input_name == "features":
        ramp = torch.arange(_ROWS * model.config.num_features, device=device) % 7 - 3
        return prepare({"features": ramp.float().view(_ROWS, model.config.num_features)})
    rows = torch.tensor(ordinary_tokens(model, _ROWS * _TOKENS), device=device).view(_ROWS, _TOKENS)
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int):
        rows[:, -1] = end  # some models classify by their end token
    # transformers reads the values of a two-dimensional mask, which a meta tensor does not have
    shape = (_ROWS, 1, _TOKENS, _TOKENS) if device.type == "meta" else (_ROWS, _TOKENS)
    mask = torch.ones(shape, dtype=torch.bool if device.type == "meta" else torch.long, device=device)
    return {"input_ids": rows, "attention_mask": mask}
