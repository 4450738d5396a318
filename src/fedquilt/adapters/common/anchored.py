"""Adapters that are aligned to the smallest model, in a whole model: injection and layout.

In each shared block a target has a matrix and a vector between frozen factors, ``s B (P A x + q)``. P and q are named
by the target's site and the number of the shared block, so that they belong to corresponding modules of models of any
width and depth. The targets of all other blocks have plain LoRA.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from operator import attrgetter

import torch
from torch import nn

from fedquilt.adapters.common.inject import CommonAdapters, put_head, replaced
from fedquilt.adapters.common.module import CommonLinear
from fedquilt.adapters.common.settings import AnchoredSettings
from fedquilt.adapters.lora.inject import adapters as loras
from fedquilt.adapters.lora.inject import inject
from fedquilt.adapters.lora.inject import layout as lora_layout
from fedquilt.adapters.lora.module import num_features
from fedquilt.adapters.sites import SHARED, places
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.types import Blocks, Layout


def shared_blocks(num_layers: int, num_blocks: int) -> tuple[int, ...]:
    """The blocks that share, in order: ``num_blocks`` of them, ``num_layers // num_blocks`` apart, the last the last.

    Raises
    ------
    ConfigError
        if there are fewer blocks.

    Paper: fedmosaic, blocks
    """
    if num_blocks > num_layers:
        raise ConfigError(
            f"adapter.num_blocks is {num_blocks}, and a model has {num_layers} blocks; give at most as many as the "
            "shallowest model has"
        )
    step = num_layers // num_blocks
    return tuple(num_layers - 1 - step * back for back in reversed(range(num_blocks)))


def inject_anchored(
    model: nn.Module, blocks: Blocks, settings: AnchoredSettings, head: Collection[str] = (), classes: str = ""
) -> CommonAdapters:
    """Put plain LoRA on every target, and shared matrices in its place in the shared blocks.

    The model is changed in place. It then also has a module ``common`` with the matrix, and the vector, of every site
    and shared block. Afterwards no parameter requires a gradient.

    Parameters
    ----------
    model : a model without adapters.
    blocks : where its transformer blocks are.
    settings : rank, targets and number of shared blocks.
    head : the names of the parameters of a head that is shared across architectures; empty for none.
    classes : a name of the classes of the outputs; architectures with the same name share a head.

    Raises
    ------
    ConfigError
        if there are fewer blocks than are to be shared.
    ModelError
        if a target fits no site, has fewer features than the rank, or the model already has a module ``common``.
    """
    if hasattr(model, SHARED):
        raise ModelError(f"{type(model).__name__} already has a module '{SHARED}'; take that out first")
    slots = {layer: slot for slot, layer in enumerate(shared_blocks(blocks.num_layers, settings.num_blocks))}
    adapted = inject(model, blocks, settings.lora)
    found = {name: place for name, place in places(adapted, blocks).items() if place.layer in slots}
    device, rank = next(model.parameters()).device, settings.rank

    def zeros(*shape: int) -> nn.ParameterList:
        return nn.ParameterList(torch.zeros(shape, device=device) for _ in slots)

    shared = nn.ModuleDict()
    for site in dict.fromkeys(place.site for place in found.values()):
        shared[site] = zeros(rank, rank)
        if settings.bias:
            shared[f"{site}-bias"] = zeros(rank)
    model.add_module(SHARED, shared.requires_grad_(requires_grad=False))
    own, linears = dict(shared.named_parameters(prefix=SHARED)), {}
    for name, (site, layer) in found.items():
        if min(num_features(adapted[name].base)) < rank:
            raise ModelError(
                f"adapter.rank is {rank}, and '{name}' has {min(num_features(adapted[name].base))} features; give at "
                "most as many as the narrowest model has"
            )
        core, offset = f"{SHARED}.{site}.{slots[layer]}", own.get(f"{SHARED}.{site}-bias.{slots[layer]}")
        replaced(model, name, attrgetter("base"))  # the LoRA that was put there makes room
        linears[name] = replaced(
            model, name, partial(CommonLinear, settings=settings, core={core: own[core]}, offset=offset)
        )
    last = put_head(model, head, classes, rank, settings.head_scale) if head else None
    return CommonAdapters(linears, last, anchored=True, beside=loras(model))


def anchored_layout(
    model: nn.Module, blocks: Blocks, architecture: str, adapters: CommonAdapters, head: Collection[str]
) -> Layout:
    """Names, depths and shapes of what is trained: factors, shared matrices and vectors by depth, the head last.

    Parameters
    ----------
    model : the model with the adapters in it.
    blocks : where its transformer blocks are.
    architecture : its name in the federation.
    adapters : what was put into it.
    head : the names of the trained parameters of a head that is not shared across architectures.
    """
    names = {id(own): name for name, own in model.named_parameters()}
    depth = dict(lora_layout(model, blocks, architecture, head).depth)
    for path, linear in adapters.linears.items():
        depth |= {names[id(own)]: blocks.depth(path) for own in linear.shared_tensors()}
    if adapters.head is not None:
        depth[names[id(adapters.head[1].shared)]] = None
    depth = dict(sorted(depth.items(), key=lambda item: blocks.num_layers if item[1] is None else item[1]))
    shapes = dict(model.named_parameters())
    return Layout(architecture, blocks.num_layers, depth, {name: tuple(shapes[name].shape) for name in depth})
