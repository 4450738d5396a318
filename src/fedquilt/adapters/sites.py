"""Corresponding modules in models of different families, and depth slots of their blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, get_args

from torch import nn

from fedquilt.adapters.families import FAMILIES, Family, ends_in, ends_of
from fedquilt.adapters.lora.module import is_linear
from fedquilt.adapters.mixture.settings import SlotRule
from fedquilt.core.errors import ConfigError, ModelError, suggestion
from fedquilt.core.factors import modules_of
from fedquilt.core.types import Blocks, Layout

SITES: dict[str, tuple[str, ...]] = {work: ends_of(work) for work in Family._fields}
"""The path ends of the modules with the same function in different models; the first site that fits counts."""

OUTPUTS: dict[str, tuple[str, ...]] = {"attention": SITES["output"], "feed-forward": SITES["down"]}
"""The path ends of the last linear module of each part of a block; the first part that fits counts."""

SUPPORTED = tuple(name for name, family in FAMILIES.items() if family.output and family.down)
"""The model families whose sites are tested; models with the same module names are accepted too."""

SLOT_RULES = get_args(SlotRule)

BANK = "mixture"
"""The name of the module that holds the shared branches of mixtures: ``mixture.<part>.<slot>.<branch>``."""

SHARED = "common"
"""The name of the module with matrices in common coordinates: ``common.<site>.<slot>``, ``common.head-<classes>.0``."""


class Place(NamedTuple):
    """The position of a module in a model: its site, which models have in common, and its transformer block."""

    site: str
    layer: int


def places(modules: Iterable[str], blocks: Blocks, sites: Mapping[str, Sequence[str]] = SITES) -> dict[str, Place]:
    """The site and block of each of these module paths.

    Raises
    ------
    ModelError
        if a module fits no site, two modules of one block fit the same site, or a site is not in every block.
    """
    return _placed({module: blocks.depth(module) for module in modules}, blocks.num_layers, sites)


def places_in(layout: Layout, sites: Mapping[str, Sequence[str]] = SITES) -> dict[str, Place]:
    """The site and block of each adapted module of a layout; for the server, which has no model.

    Raises
    ------
    ModelError
        as ``places`` does.
    """
    depths = {module: layout.depth[f"{module}.lora_A"] for module in modules_of(layout.depth)}
    return _placed(depths, layout.num_layers, sites)


def _placed(depths: Mapping[str, int | None], num_layers: int, sites: Mapping[str, Sequence[str]]) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for module, layer in depths.items():
        site = site_of(module, sites)
        if site is None or layer is None:
            raise ModelError(
                f"module '{module}' has no place among the sites {', '.join(sites)}; choose other adapter.targets"
            )
        if Place(site, layer) in found.values():
            raise ModelError(f"block {layer} has two modules at the site '{site}', one of them '{module}'")
        found[module] = Place(site, layer)
    for site in {place.site for place in found.values()}:
        held = {place.layer for place in found.values() if place.site == site}
        if len(held) < num_layers:
            raise ModelError(
                f"the site '{site}' is in {len(held)} of {num_layers} blocks; a site must be in every block"
            )
    return found


def site_of(module: str, sites: Mapping[str, Sequence[str]] = SITES) -> str | None:
    """The site of the module at this path, or None."""
    return next((site for site, ends in sites.items() if ends_in(module, *ends)), None)


def axes_of(module: str) -> str:
    """What the first factors of the module are drawn by where layers share tensors: its site, or its path without one.

    Layers whose factors have unrelated axes have nothing in common that matrices between the factors could share.
    """
    return site_of(module) or module


def sites_of(places: Mapping[str, Place]) -> tuple[str, ...]:
    """The sites of a model, each once, in their order."""
    return tuple(dict.fromkeys(place.site for place in places.values()))


def output_projections(
    model: nn.Module, blocks: Blocks, parts: Sequence[str] = tuple(OUTPUTS), layers: Iterable[int] | None = None
) -> dict[str, Place]:
    """The site and block of the last linear module of each of these parts, by its path; ``layers`` None for all blocks.

    Raises
    ------
    ConfigError
        if there is no such part, or none is wanted.
    ModelError
        if a block lacks a part's module or has several (a mixture of feed-forward experts), or there is no such block.
    """
    if unknown := [part for part in parts if part not in OUTPUTS]:
        raise ConfigError(
            f"adapter.sites holds '{unknown[0]}'{suggestion(unknown[0], [*OUTPUTS])}; there are: {', '.join(OUTPUTS)}"
        )
    if not parts:
        raise ConfigError(f"adapter.sites is empty; give at least one of {', '.join(OUTPUTS)}")
    wanted = range(blocks.num_layers) if layers is None else sorted(set(layers))
    if not wanted or wanted[0] < 0 or wanted[-1] >= blocks.num_layers:
        raise ModelError(f"layers to adapt are {list(wanted)}; give some of 0 to {blocks.num_layers - 1}")
    linears = {name: blocks.depth(name) for name, module in model.named_modules() if is_linear(module)}
    found: dict[str, Place] = {}
    for layer in wanted:
        inside = {name: site_of(name, OUTPUTS) for name, depth in linears.items() if depth == layer}
        for part in OUTPUTS:
            names = [name for name, its_part in inside.items() if its_part == part]
            if part in parts and len(names) != 1:
                raise ModelError(_refusal(model, blocks, layer, part, names, [*inside]))
            found |= {name: Place(part, layer) for name in names if part in parts}
    return found


def is_shared(name: str) -> bool:
    """Whether clients of all architectures share the tensor of this name: a branch, core or common head."""
    return name.startswith((BANK + ".", SHARED + "."))


def slots_of(num_layers: int, num_slots: int, rule: str = "relative") -> tuple[int | None, ...]:
    """The depth slot of every block, or None for a block that shares nothing.

    ``"relative"``: block l of L has slot ``floor((l + 1/2) C / L)`` of C; several blocks may have the same slot.
    ``"spaced"``: C equally spaced blocks, the last block among them, have one slot each, the others none. ``"top"``:
    the last block has the last slot, the second last block the second last slot, until blocks or slots run out.

    Raises
    ------
    ConfigError
        if the rule is unknown.
    ValueError
        if there are no layers or slots, or with ``"spaced"`` more slots than layers.

    Paper: heterotune, depth-slots
    """
    if num_layers < 1 or num_slots < 1:
        raise ValueError(f"{num_layers} layers and {num_slots} slots; there must be at least one of each")
    if rule == "relative":
        return tuple((2 * layer + 1) * num_slots // (2 * num_layers) for layer in range(num_layers))
    if rule == "spaced":
        if num_slots > num_layers:
            raise ValueError(f"{num_slots} slots cannot be spaced over {num_layers} layers; give at most {num_layers}")
        chosen = {-(-(slot + 1) * num_layers // num_slots) - 1: slot for slot in range(num_slots)}
        return tuple(chosen.get(layer) for layer in range(num_layers))
    if rule == "top":
        offset = num_slots - num_layers
        return tuple(layer + offset if layer + offset >= 0 else None for layer in range(num_layers))
    raise ConfigError(
        f"adapter.slot_rule is '{rule}'{suggestion(rule, SLOT_RULES)}; it must be one of {', '.join(SLOT_RULES)}"
    )


def _refusal(
    model: nn.Module, blocks: Blocks, layer: int, part: str, names: Sequence[str], inside: Sequence[str]
) -> str:
    prefix = f"{blocks.path}.{layer}."
    listed = ", ".join(name.removeprefix(prefix) for name in (names or inside)) or "none"
    problem = (
        f"has {len(names)} modules that end its {part} part ({listed})"
        if names
        else f"has no linear module that is known to end its {part} part; its linear modules are: {listed}"
    )
    others = [other for other in OUTPUTS if other != part and any(site_of(name, OUTPUTS) == other for name in inside)]
    if others and not names:
        return f"{type(model).__name__}: block {layer} {problem}; set adapter.sites = {others}"
    return (
        f"{type(model).__name__}: block {layer} {problem}; adapters after attention and feed-forward are for "
        f"{', '.join(SUPPORTED)}"
    )
