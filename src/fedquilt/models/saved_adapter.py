"""Loading a saved adapter into a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

from torch import nn

from fedquilt.adapters.common.parts import PARTS_FILE, load_parts
from fedquilt.adapters.lora.kind import LORA
from fedquilt.adapters.registry import KINDS
from fedquilt.core.errors import ModelError
from fedquilt.core.types import Blocks
from fedquilt.models.layers import find_blocks


def load_adapter(model: nn.Module, folder: str | Path, *, blocks: Blocks | str | None = None) -> nn.Module:
    """Load the adapter and the head in ``folder`` into ``model``, in place; the model.

    A folder with two parts (``fedquilt_parts.json``) gives a model around it that averages the logits of both.
    ``model`` is the base model that was fine-tuned, with a head for the same number of classes. ``folder`` was written
    by a run: a mixture of adapters (``fedquilt_adapter.json``), or plain LoRA in PEFT's format
    (``adapter_config.json``). ``blocks`` is the path of the model's list of blocks; by default it is searched for. No
    parameter requires a gradient afterwards.

    Raises
    ------
    ModelError
        if the folder is damaged or has another format, or its tensors do not fit the model in name or shape.
    """
    folder = Path(folder)
    if isinstance(blocks, str):
        blocks = Blocks(blocks, len(cast(nn.ModuleList, model.get_submodule(blocks))))
    blocks = blocks or find_blocks(model)
    if not folder.is_dir():
        raise ModelError(f"there is no adapter folder {folder}")
    if (folder / PARTS_FILE).is_file():
        return load_parts(model, folder, partial(_load_lora, blocks))
    loads = {kind.files[0]: kind.load for kind in KINDS.values() if kind.load is not None}
    load = next((load for file, load in loads.items() if (folder / file).is_file()), None)
    if load is None and (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds a whole model and no adapter; load it with from_pretrained")
    if load is None:
        raise ModelError(
            f"{folder} holds no {' or '.join(loads)}, so it is not an adapter; give a folder that a run wrote"
        )
    load(model, blocks, folder)
    return model


def _load_lora(blocks: Blocks, model: nn.Module, folder: Path) -> None:
    """Load plain LoRA into a model, in place."""
    load = LORA.load
    assert load is not None  # LoRA is saved as an adapter
    load(model, blocks, folder)
