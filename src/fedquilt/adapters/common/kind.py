"""Adapters in common coordinates as a kind of adapter; saved as plain LoRA."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedquilt.adapters.common.inject import (
    CommonAdapters,
    common_layout,
    initial_common,
    inject_common,
    private_modules,
)
from fedquilt.adapters.common.module import ENDS, PARTS
from fedquilt.adapters.common.parts import save_parts
from fedquilt.adapters.common.settings import CommonSettings
from fedquilt.adapters.kind import Export, Host, Kind, Put, no_scaling
from fedquilt.adapters.lora.as_plain_lora import plain
from fedquilt.adapters.lora.inject import all_linear, copied
from fedquilt.adapters.lora.kind import LORA, save_lora
from fedquilt.adapters.lora.peft_targets import peft_names
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.settings import Adapter
from fedquilt.adapters.sites import output_projections
from fedquilt.core.errors import ConfigError
from fedquilt.core.factors import Product, factors, named
from fedquilt.core.settings import part_of
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import Layout


def _put(section: Adapter, host: Host) -> Put:
    every = section.private_targets == "all-linear"
    targets = all_linear(host.model, host.blocks) if every else section.private_targets
    slots = section.num_slots or host.fewest_layers
    settings = part_of(section, CommonSettings, num_slots=slots, private_targets=targets)
    if settings.parts == "apart" and not TASKS[host.task].has_classes:
        raise ConfigError(
            f"adapter.parts = 'apart': averages the logits of classifiers, and task = '{host.task}' has no classes; "
            "leave it out"
        )
    # an adapter that PEFT could not read is rejected before anything is trained
    found = {
        **output_projections(host.model, host.blocks, settings.sites),
        **private_modules(host.model, host.blocks, settings),
    }
    peft_names(host.model, found, host.head, tuple(found), host.task)
    head = host.trained_head and host.head
    adapters = inject_common(host.model, host.blocks, settings, head, classes_of(host))
    clear_head(adapters, host)
    where = common_layout(host.model, host.blocks, host.architecture, adapters)

    def save(folder: Path, params: Mapping[str, Tensor], export: Export) -> None:
        export.load(params)
        private = _private(params, adapters, settings)

        def write(folder: Path, *parts: str) -> None:
            common, own = _changes(adapters) if "common" in parts else {}, private if "private" in parts else {}
            with adapters.alone(*parts):
                folded = _folded(host, adapters, common, own)
            with adapters.taken_out(host.model):
                save_lora(folder, *folded, host, export)

        if adapters.weight is not None:
            save_parts(folder, write, float(adapters.weight))
        else:
            write(folder, *PARTS)

    scaling = settings.private.scaling if settings.private_rank else no_scaling
    return Put(where, initial_common(where), scaling, save, settings=settings, common=adapters)


def classes_of(host: Host) -> str:
    """A short name of the classes, the same for every model that has them in this order."""
    return hashlib.sha256("\n".join(host.classes).encode()).hexdigest()[:8]


def clear_head(adapters: CommonAdapters, host: Host) -> None:
    """Set a head that was drawn at random to 0, in place: it would only disturb the common one."""
    if adapters.head is not None and host.fresh_head:
        with torch.no_grad():
            for parameter in adapters.head[1].base.parameters():
                parameter.zero_()


def folded_head(host: Host, adapters: CommonAdapters) -> dict[str, Tensor]:
    """The parameters of the model's head by their own names, on the CPU, with the common head folded into them."""
    with adapters.taken_out(host.model):
        parameters = dict(host.model.named_parameters())
    tensors = {name: copied(parameters[name]) for name in host.head}
    if adapters.head is not None:
        module, head = adapters.head
        weight, bias = head.folded()
        tensors |= {f"{module}.weight": weight.cpu()} | ({} if bias is None else {f"{module}.bias": bias.cpu()})
    return tensors


def _private(params: Mapping[str, Tensor], adapters: CommonAdapters, settings: CommonSettings) -> dict[str, Product]:
    """The private factors by module, of scale 1, with what was merged into the base."""
    own = {
        name: tensor
        for name, tensor in params.items()
        if name.rpartition(".")[0] in {**adapters.linears, **adapters.beside} and name.rpartition(".")[2] not in ENDS
    }
    if not own:
        return {}
    made, lora = plain(own, settings.private)
    return {name: Product(lora.scaling(name, pair.rank) * pair.B, pair.A) for name, pair in factors(made).items()}


def _changes(adapters: CommonAdapters) -> dict[str, Product]:
    """What the cores add to each module, as factors of scale 1."""
    return {name: own.folded() for name, own in adapters.linears.items()}


def _folded(
    host: Host, adapters: CommonAdapters, common: Mapping[str, Product], private: Mapping[str, Product]
) -> tuple[dict[str, Tensor], LoraSettings, Layout]:
    """These factors as plain LoRA, with the classifier's weights, the settings and the layout of both."""
    pairs = dict(common)
    for name, own in private.items():
        b, a = zip(*(pair for pair in (common.get(name), own) if pair is not None), strict=True)
        pairs[name] = Product(torch.cat([one.cpu() for one in b], 1), torch.cat([one.cpu() for one in a]))
    tensors = {name: tensor.cpu() for name, tensor in named(pairs).items()}
    depth: dict[str, int | None] = {name: host.blocks.depth(name) for name in tensors}
    head = folded_head(host, adapters)
    tensors, depth = {**tensors, **head}, {**depth, **dict.fromkeys(head)}
    ranks = {name: pair.rank for name, pair in pairs.items()}
    most = max(ranks.values())
    unlike = {name: rank for name, rank in ranks.items() if rank != most}
    alphas = {name: float(rank) for name, rank in unlike.items()}
    lora = LoraSettings(most, float(most), rank_pattern=unlike, alpha_pattern=alphas, targets=tuple(pairs))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return tensors, lora, Layout(host.architecture, host.blocks.num_layers, depth, shapes)


COMMON = Kind(_put, LORA.load, LORA.files, has_factors=True, shares_branches=True, needs_public=True, ranks="one")
"""Matrices in common coordinates, which models of all architectures share; ends are found, not trained."""
