"""Where adapters after attention and after the feed-forward part of a block sit, and the depth slots of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from fedquilt.adapters.lora.module import is_linear
from fedquilt.core.errors import ConfigError, ModelError, suggestion
from fedquilt.core.types import Blocks

OUTPUTS: dict[str, tuple[str, ...]] = {
    "attention": ("o_proj", "attn.c_proj", "attention.output.dense", "attention.out_lin"),
    "feed-forward": ("down_proj", "mlp.fc2", "mlp.c_proj", "output.dense", "ffn.lin2"),
}
"""The linear module that ends each part of a block, by the ends of its path; the first site that fits counts."""

SUPPORTED = ("ViT", "BERT", "DistilBERT", "LLaMA", "Gemma, Gemma 2 and Gemma 3", "Qwen2", "Qwen3", "GPT-2")
"""The models whose sites are tested; others that name their modules alike are taken too."""

SLOT_RULES = ("relative", "spaced", "top")


class Site(NamedTuple):
    """The part of a block whose output is adapted, ``"attention"`` or ``"feed-forward"``, and the block."""

    part: str
    layer: int


def output_projections(
    model: nn.Module, blocks: Blocks, parts: Sequence[str] = tuple(OUTPUTS), layers: Iterable[int] | None = None
) -> dict[str, Site]:
    """The module path of the last linear module of each of these parts in each of these blocks (None: in all).

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
    found: dict[str, Site] = {}
    for layer in wanted:
        inside = {name: _part(name) for name, depth in linears.items() if depth == layer}
        for part in OUTPUTS:
            names = [name for name, its_part in inside.items() if its_part == part]
            if part in parts and len(names) != 1:
                raise ModelError(_refusal(model, blocks, layer, part, names, [*inside]))
            found |= {name: Site(part, layer) for name in names if part in parts}
    return found


def slots_of(num_layers: int, num_slots: int, rule: str = "relative") -> tuple[int | None, ...]:
    """The depth slot of every block, or None for a block that takes no part in sharing.

    ``"relative"``: block l of L has slot ``floor((l + 1/2) C / L)`` of C; several may share one. ``"spaced"``: C
    equally spaced blocks, the last among them, have one slot each, the others none. ``"top"``: the last block has the
    last slot, the one before it the one before, until either runs out.

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


def _part(name: str) -> str | None:
    return next((part for part, ends in OUTPUTS.items() if _ends(name, ends)), None)


def _ends(name: str, ends: Iterable[str]) -> bool:
    return any(name == end or name.endswith("." + end) for end in ends)


def _refusal(
    model: nn.Module, blocks: Blocks, layer: int, part: str, names: Sequence[str], inside: Sequence[str]
) -> str:
    prefix = f"{blocks.path}.{layer}."
    told = ", ".join(name.removeprefix(prefix) for name in (names or inside)) or "none"
    problem = (
        f"has {len(names)} modules that end its {part} part ({told})"
        if names
        else f"has no linear module that is known to end its {part} part; its linear modules are: {told}"
    )
    return (
        f"{type(model).__name__}: block {layer} {problem}; adapters after attention and feed-forward are for "
        f"{', '.join(SUPPORTED)}"
    )
