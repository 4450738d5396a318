"""fedquilt: federated fine-tuning of foundation models across clients that do not match."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """The model, in which the adapter of a folder that a run wrote now is; see ``models.adapter.load_adapter``."""
    from fedquilt.models.saved_adapter import load_adapter as load  # takes seconds: it needs torch

    return load(model, folder)
