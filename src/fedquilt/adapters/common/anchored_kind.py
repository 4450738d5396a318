"""Adapters that are aligned to the smallest model as a kind of adapter; saved as LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fedquilt.adapters.common.anchored import anchored_layout, inject_anchored
from fedquilt.adapters.common.inject import CommonAdapters
from fedquilt.adapters.common.kind import classes_of, clear_head, folded_head
from fedquilt.adapters.common.settings import AnchoredSettings
from fedquilt.adapters.kind import Export, Host, Kind, Put
from fedquilt.adapters.lora.inject import all_linear, initial
from fedquilt.adapters.lora.kind import LORA, save_lora
from fedquilt.adapters.lora.peft_targets import peft_names
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.settings import Adapter
from fedquilt.core.factors import BIAS, Product, named
from fedquilt.core.settings import part_of
from fedquilt.core.types import Layout


def _put(section: Adapter, host: Host) -> Put:
    every = section.targets == "all-linear"
    targets = all_linear(host.model, host.blocks) if every else section.targets or host.targets or None
    settings = part_of(section, AnchoredSettings, targets=targets)
    shared_head = host.head if settings.common_head and host.trained_head else ()
    adapters = inject_anchored(host.model, host.blocks, settings, shared_head, classes_of(host))
    clear_head(adapters, host)
    own_head = () if shared_head else host.trained_head
    where = anchored_layout(host.model, host.blocks, host.architecture, adapters, own_head)
    with adapters.taken_out(host.model):  # an adapter that PEFT could not read is rejected before anything is trained
        peft_names(host.model, {**adapters.linears, **adapters.beside}, host.head, targets or (), host.task)

    def save(folder: Path, params: Mapping[str, Tensor], export: Export) -> None:
        export.load(params)
        folded = _folded(host, adapters, settings)
        with adapters.taken_out(host.model):
            save_lora(folder, *folded, host, export)

    def scaling(module: str, rank: int) -> float:
        return settings.scaling

    return Put(where, initial(where, host.model), scaling, save, settings=settings, common=adapters)


def _folded(
    host: Host, adapters: CommonAdapters, settings: AnchoredSettings
) -> tuple[dict[str, Tensor], LoraSettings, Layout]:
    """The adapters in the model as LoRA with the classifier's weights, its settings and its layout.

    Factors have the scale of the settings. Vectors become the bias of B, which PEFT can save and add, so then every
    module has one.
    """
    scale = settings.scaling
    pairs = {name: Product(b / scale, a) for name, (b, a) in ((k, m.folded()) for k, m in adapters.linears.items())}
    pairs |= {name: Product(lora.lora_B.detach(), lora.lora_A.detach()) for name, lora in adapters.beside.items()}
    tensors = named(pairs)
    if settings.bias:
        added = {name: linear.added_bias() for name, linear in adapters.linears.items()}
        for name, (b, _) in pairs.items():
            own = added.get(name)
            tensors[f"{name}.{BIAS}"] = torch.zeros(len(b)) if own is None else own / scale
    depth: dict[str, int | None] = {name: host.blocks.depth(name) for name in tensors}
    head = folded_head(host, adapters)
    tensors, depth = {**tensors, **head}, {**depth, **dict.fromkeys(head)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    lora = replace(settings.lora, lora_bias=settings.bias)
    return tensors, lora, Layout(host.architecture, host.blocks.num_layers, depth, shapes)


ANCHORED = Kind(_put, LORA.load, LORA.files, shares_branches=True, needs_public=True, ranks="one")
"""Matrices between factors aligned to the smallest model's in some blocks, plain LoRA in the others."""
