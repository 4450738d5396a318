"""LoRA as a kind of adapter, saved in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fedquilt.adapters.kind import Export, Host, Kind, Put
from fedquilt.adapters.lora.as_plain_lora import plain
from fedquilt.adapters.lora.inject import adapters, all_linear, initial, inject, layout, load
from fedquilt.adapters.lora.peft_files import PEFT_CONFIG, PEFT_TENSORS, load_peft, save_peft
from fedquilt.adapters.lora.peft_targets import peft_names
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.settings import Adapter
from fedquilt.adapters.sites import axes_of
from fedquilt.core.errors import ModelError
from fedquilt.core.factors import BIAS, FACTORS, MAGNITUDE
from fedquilt.core.settings import part_of
from fedquilt.core.types import Blocks, Layout, Params


def _put(section: Adapter, host: Host) -> Put:
    every = section.targets == "all-linear"
    targets = all_linear(host.model, host.blocks) if every else section.targets or host.targets or None
    settings = part_of(section, LoraSettings, targets=targets)
    settings.refuse_patterns(inject(host.model, host.blocks, settings, head=host.trained_head))
    where = layout(host.model, host.blocks, host.architecture, host.trained_head)
    # an adapter that PEFT could not read is rejected before anything is trained
    peft_names(host.model, adapters(host.model), host.head, settings.targets or (), host.task)

    def save(folder: Path, params: Mapping[str, Tensor], export: Export) -> None:
        tensors, own = plain(params, settings)
        save_lora(folder, tensors, own, where, host, export)

    start = initial(where, host.model, axes_of if host.slots else str)
    return Put(where, start, settings.scaling, save, settings=settings)


def save_lora(folder: Path, params: Params, settings: LoraSettings, layout: Layout, host: Host, export: Export) -> None:
    """Write plain LoRA and the head of its model as a folder that PEFT reads.

    Parameters
    ----------
    folder : the folder; an existing one is replaced.
    params : the factors of each module at its rank in ``settings``, and the trained head.
    settings : ranks, scaling and modules, as PEFT's config holds them.
    layout : the tensors that ``params`` may hold.
    host : the model with adapters in it.
    export : what else the folder holds.

    Raises
    ------
    ModelError
        if PEFT's config cannot express what is adapted or saved.
    RunError
        if the folder cannot be written.
    """
    save_peft(
        folder,
        params,
        host.model,
        layout,
        settings,
        base_name=export.base_name,
        task=host.task,
        head=host.head,
        revision=export.revision,
        beyond=None if export.num_layers is None else f"{host.blocks.path}.{export.num_layers}",
        classes=export.classes,
    )


def _load(model: nn.Module, blocks: Blocks, folder: Path) -> None:
    params, settings = load_peft(folder)
    head = tuple(name for name in params if not name.endswith((*FACTORS, MAGNITUDE, BIAS)))
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


LORA = Kind(_put, _load, (PEFT_CONFIG, PEFT_TENSORS), has_factors=True, ranks="own")
"""Two low-rank factors at every target."""
