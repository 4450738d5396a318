"""Adapters in common coordinates as a kind of adapter; saved as plain LoRA."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedquilt.adapters.common.inject import CommonAdapters, common_layout, initial_common, inject_common
from fedquilt.adapters.common.settings import CommonSettings
from fedquilt.adapters.kind import Export, Host, Kind, Put
from fedquilt.adapters.lora.inject import copied
from fedquilt.adapters.lora.kind import LORA, save_lora
from fedquilt.adapters.lora.peft_targets import peft_names
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.settings import Adapter
from fedquilt.adapters.sites import output_projections
from fedquilt.core.factors import named
from fedquilt.core.settings import part_of
from fedquilt.core.types import Layout


def _put(section: Adapter, host: Host) -> Put:
    settings = part_of(section, CommonSettings, num_slots=section.num_slots or host.fewest_layers)
    # an adapter that PEFT could not read is rejected before anything is trained
    found = output_projections(host.model, host.blocks, settings.sites)
    peft_names(host.model, found, host.head, tuple(found), host.task)
    head = host.trained_head and host.head
    adapters = inject_common(host.model, host.blocks, settings, head, _named(host))
    if adapters.head is not None and host.fresh_head:
        with torch.no_grad():  # a head drawn at random would only disturb the common one
            for parameter in adapters.head[1].base.parameters():
                parameter.zero_()
    where = common_layout(host.model, host.blocks, host.architecture, adapters)

    def scaling(module: str, rank: int) -> float:
        return settings.scaling

    def save(folder: Path, params: Mapping[str, Tensor], export: Export) -> None:
        export.load(params)
        folded = _folded(host, adapters, settings)
        with adapters.taken_out(host.model):
            save_lora(folder, *folded, host, export)

    return Put(where, initial_common(where), scaling, save, settings=settings, common=adapters)


def _named(host: Host) -> str:
    """A short name of the classes, the same for every model that has them in this order."""
    return hashlib.sha256("\n".join(host.classes).encode()).hexdigest()[:8]


def _folded(
    host: Host, adapters: CommonAdapters, settings: CommonSettings
) -> tuple[dict[str, Tensor], LoraSettings, Layout]:
    """The adapters in the model as plain LoRA with the classifier's weights, its settings and its layout."""
    tensors = {
        name: tensor.cpu()
        for name, tensor in named({module: own.folded() for module, own in adapters.linears.items()}).items()
    }
    depth: dict[str, int | None] = {name: host.blocks.depth(name) for name in tensors}
    with adapters.taken_out(host.model):
        parameters = dict(host.model.named_parameters())
    for name in host.head:
        tensors[name], depth[name] = copied(parameters[name]), None
    if adapters.head is not None:
        module, head = adapters.head
        weight, bias = head.folded()
        tensors |= {f"{module}.weight": weight.cpu()} | ({} if bias is None else {f"{module}.bias": bias.cpu()})
        depth |= dict.fromkeys((f"{module}.weight",) if bias is None else (f"{module}.weight", f"{module}.bias"))
    rank = settings.rank + settings.private_rank
    lora = LoraSettings(rank, float(rank), targets=tuple(adapters.linears))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return tensors, lora, Layout(host.architecture, host.blocks.num_layers, depth, shapes)


COMMON = Kind(_put, LORA.load, LORA.files, shares_branches=True, needs_public=True, ranks="one")
"""Matrices in common coordinates, which models of all architectures share; ends are found, not trained."""
