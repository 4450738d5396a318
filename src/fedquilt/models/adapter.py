"""A saved adapter put into a model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from fedquilt.adapters.lora.inject import inject, layout, load
from fedquilt.adapters.lora.peft_files import load_peft
from fedquilt.adapters.mixture.files import CONFIG, put_mixture, read_mixture
from fedquilt.core.errors import ModelError
from fedquilt.models.layers import find_blocks


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """The model, in which the adapter of the folder and its head now are; it is changed in place.

    ``model`` is the bare one that was fine-tuned, with a head of as many classes. The folder is one that a run wrote:
    a mixture of adapters (``fedquilt_adapter.json``) or plain LoRA in PEFT's format (``adapter_config.json``). No
    parameter requires a gradient afterwards.

    Raises
    ------
    ModelError
        if the folder is damaged or of another format, or its tensors' names and shapes are not those of the model.
    """
    folder, blocks = Path(folder), find_blocks(model)
    mixture, lora = ((folder / name).is_file() for name in (CONFIG, "adapter_config.json"))
    if not mixture and not lora and (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds a whole model and no adapter; load it with from_pretrained")
    if mixture or not lora:
        put_mixture(model, blocks, read_mixture(folder), folder)
        return model
    params, settings = load_peft(folder)
    head = tuple(name for name in params if not name.endswith(("lora_A", "lora_B")))
    inject(model, blocks, settings, head=head)
    where = layout(model, blocks, type(model).__name__, head)
    shapes = {name: tuple(tensor.shape) for name, tensor in params.items()}
    for name in sorted(shapes.keys() | where.shapes.keys()):
        if shapes.get(name) != where.shapes.get(name):
            raise ModelError(
                f"{folder}: tensor '{name}' is {shapes.get(name)}, the model's is {where.shapes.get(name)}; the "
                "adapter is of another model"
            )
    load(dict(model.named_parameters()), params)
    return model
