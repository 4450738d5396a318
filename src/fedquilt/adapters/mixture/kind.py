"""Mixtures of adapters as a kind of adapter: read from the run file, put into a model, written as a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from fedquilt.adapters.kind import Export, Host, Kind, Put
from fedquilt.adapters.lora.kind import save_lora
from fedquilt.adapters.lora.peft_targets import peft_names
from fedquilt.adapters.lora.settings import LoraSettings
from fedquilt.adapters.mixture.files import CONFIG, TENSORS, put_mixture, read_mixture, save_mixture
from fedquilt.adapters.mixture.inject import (
    as_lora,
    initial_mixture,
    inject_mixture,
    mixture_layout,
    mixtures,
    trained_names,
)
from fedquilt.adapters.mixture.settings import MixtureSettings
from fedquilt.adapters.settings import Adapter
from fedquilt.core.errors import ConfigError, ModelError
from fedquilt.core.settings import part_of
from fedquilt.core.types import Blocks, Layout, Params


def settings_of(section: Adapter, host: Host) -> MixtureSettings:
    """The settings of an architecture's mixtures.

    By default there are as many branches as architectures in the federation, and as many depth slots as blocks in the
    shallowest of them.

    Raises
    ------
    ConfigError
        if each client trains only its own branch and there is none for this architecture, or there are more slots than
        blocks.
    """
    settings = part_of(
        section,
        MixtureSettings,
        branches=section.branches or host.num_architectures,
        num_slots=section.num_slots or host.fewest_layers,
    )
    depth = host.blocks.num_layers
    if settings.trained == "own" and host.number >= settings.branches:
        raise ConfigError(
            f"adapter.branches = {settings.branches}: {host.architecture} is architecture number {host.number + 1} of "
            "the federation, and with adapter.trained = 'own' each has a branch; leave adapter.branches out"
        )
    if settings.slot_rule == "spaced" and settings.num_slots > depth:
        raise ConfigError(
            f"adapter.num_slots = {settings.num_slots}: cannot be spaced over the {depth} blocks of "
            f"{host.architecture}; give at most {depth}, or set adapter.slot_rule = 'relative'"
        )
    return settings


def _put(section: Adapter, host: Host) -> Put:
    settings = settings_of(section, host)
    inject_mixture(host.model, host.blocks, settings)
    where = mixture_layout(host.model, host.blocks, host.architecture, host.trained_head)
    trained = where.depth if settings.trained == "all" else trained_names(where, settings, host.number)

    def save(folder: Path, params: Mapping[str, Tensor], export: Export) -> None:
        export.load(params)
        linear = _as_plain_lora(params, where, host)
        if linear is not None:
            save_lora(folder, *linear, host, export)
            return
        # a frozen head is not in the layout; one that was initialised at random must be saved too, for the same outputs
        own = dict(host.model.named_parameters())
        head = {name: own[name].detach() for name in host.head if host.fresh_head and name not in params}
        save_mixture(
            folder,
            {**params, **head},
            where,
            settings,
            base_name=export.model_name,
            task=host.task,
            head=host.head,
            classes=export.classes,
        )

    def scaling(module: str, rank: int) -> float:
        return settings.scaling

    frozen = frozenset(where.depth) - frozenset(trained)
    return Put(where, initial_mixture(where, host.model, settings), scaling, save, frozen, settings)


def _as_plain_lora(
    params: Mapping[str, Tensor], layout: Layout, host: Host
) -> tuple[Params, LoraSettings, Layout] | None:
    """The mixtures in the model as plain LoRA with its settings and layout; None if they are not linear."""
    found = mixtures(host.model)
    try:
        pairs, settings = as_lora(found)
        peft_names(host.model, found, host.head, tuple(found), host.task)
    except ModelError:
        return None
    depth = {**{name: host.blocks.depth(name) for name in pairs}, **dict.fromkeys(layout.head)}
    tensors = {**pairs, **{name: params[name] for name in layout.head}}
    shapes = {name: tuple(tensors[name].shape) for name in depth}
    own = Layout(layout.architecture, layout.num_layers, depth, shapes)
    return tensors, replace(settings, targets=tuple(found)), own


def _load(model: nn.Module, blocks: Blocks, folder: Path) -> None:
    put_mixture(model, blocks, read_mixture(folder), folder)


MIXTURE = Kind(_put, _load, (CONFIG, TENSORS), shares_branches=True, ranks="one")
"""Projections of the model's width around a mixture of branches that models of all architectures share."""
