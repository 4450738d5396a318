"""What a config says on adapters, put into models: low-rank factors, mixtures that models of unlike shape share, or
none, where the weights themselves are trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from fedquilt.adapters.buffers import State
from fedquilt.adapters.full import full_layout, initial_full
from fedquilt.adapters.lora.inject import initial, inject, layout
from fedquilt.adapters.lora.module import LoraSettings
from fedquilt.adapters.mixture.inject import initial_mixture, inject_mixture, mixture_layout, trained_names
from fedquilt.adapters.mixture.module import MixtureSettings
from fedquilt.config.adapter import Adapter
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Layout, Params
from fedquilt.models.hf import Loaded

Settings = LoraSettings | MixtureSettings | None
"""Of the adapters of an architecture; None where its weights are trained."""

ANY_TENSORS = ("fedit", "fed-hello", "fedra", "exclusive", "straggler", "local-only", "full")
"""Methods that need no low-rank factors, only tensors that a mean can be taken of."""

_ONE_FOR_ALL = ("kind", "rank", "sites", "trained", "num_slots", "branches")
"""Keys of [adapter] that must be the same in all groups for their branches to be shared."""


class Put(NamedTuple):
    """What is trained in a model: where it is, what training starts from, and what of it its clients never train."""

    layout: Layout
    start: Callable[[Rng], Params]
    frozen: frozenset[str]


def settings_of(parts: Sequence[Part], names: Sequence[str], loaded: Sequence[Loaded]) -> dict[str, Settings]:
    """The settings of each architecture's adapters, by its name.

    A mixture has as many branches as the federation has architectures, and as many slots as the shallowest of them has
    blocks, unless the config says other.
    """
    found: dict[str, Settings] = {}
    shallowest = min(model.blocks.num_layers for model in loaded)
    for part, name, model in zip(parts, names, loaded, strict=True):
        if name not in found:
            found[name] = _settings(part.config.adapter, model, len(set(names)), shallowest)
    return found


def put(loaded: Loaded, settings: Settings, architecture: str, head: Collection[str], place: int, state: State) -> Put:
    """The adapters, now in the model, or its weights where there are none to put in.

    ``place`` is that of the architecture in the federation, and of its branch. ``state`` are the buffers that training
    changes: trained with the weights, and left as they are by adapters.

    Raises
    ------
    ConfigError
        if clients train their own branch alone and there is none for this architecture, or it has too few blocks for
        the slots.
    """
    if settings is None:
        resting = frozenset(loaded.head) - frozenset(head)
        where = full_layout(loaded.model, loaded.blocks, architecture, head, resting, state)
        return Put(where, initial_full(where, loaded.model, state), frozenset())
    if isinstance(settings, LoraSettings):
        inject(loaded.model, loaded.blocks, settings, settings.targets, head)
        where = layout(loaded.model, loaded.blocks, architecture, head)
        return Put(where, initial(where, loaded.model), frozenset())
    if settings.trained == "own" and place >= settings.branches:
        raise ConfigError(
            f"adapter.branches = {settings.branches}: {architecture} is architecture number {place + 1} of the "
            "federation, and with adapter.trained = 'own' each has a branch; leave adapter.branches out"
        )
    depth = loaded.blocks.num_layers
    if settings.slot_rule == "spaced" and settings.num_slots > depth:
        raise ConfigError(
            f"adapter.num_slots = {settings.num_slots}: cannot be spaced over the {depth} blocks of {architecture}; "
            f"give at most {depth}, or set adapter.slot_rule = 'relative'"
        )
    inject_mixture(loaded.model, loaded.blocks, settings)
    where = mixture_layout(loaded.model, loaded.blocks, architecture, head)
    trained = where.depth if settings.trained == "all" else trained_names(where, settings, place)
    return Put(where, initial_mixture(where, loaded.model, settings), frozenset(where.depth) - frozenset(trained))


def refuse_adapter(config: Config, parts: Sequence[Part], settings: Mapping[str, Any]) -> None:
    """Nothing, if the method can train the adapters that the config and its groups ask for.

    ``settings`` are the method's arguments, defaults and all.

    Raises
    ------
    ConfigError
        with everything that does not go together.
    """
    name, problems = config.method.name, []
    kinds = {part.config.adapter.kind for part in parts}
    if name == "heterotune":
        problems += _unlike(parts)
        problems += [
            f"adapter.kind = '{kind}': method.name = 'heterotune' shares the branches of mixtures between "
            f"architectures, and {what} no branches; set adapter.kind = 'mixture'"
            for kind, what in (("lora", "LoRA has"), ("full", "weights have"))
            if kind in kinds
        ]
    for kind in ("mixture", "full"):
        if kind in kinds:
            problems += _no_factors(config, settings, kind)
    if "mixture" in kinds and settings.get("drop_layers"):
        problems.append(
            "method.drop_layers = true: with adapter.kind = 'mixture' blocks share branches, which would be lost with "
            "one of them; set method.drop_layers = false"
        )
    problems += _odd_ranks(parts)
    if problems:
        raise ConfigError(problems)


def _settings(adapter: Adapter, loaded: Loaded, architectures: int, shallowest: int) -> Settings:
    if adapter.kind == "full":
        return None
    if adapter.kind == "lora":
        return LoraSettings(
            rank=adapter.rank,
            alpha=adapter.alpha,
            dropout=adapter.dropout,
            rslora=adapter.rslora,
            targets=adapter.targets or loaded.targets,
        )
    return MixtureSettings(
        rank=adapter.rank,
        branches=adapter.branches or architectures,
        num_slots=adapter.num_slots or shallowest,
        alpha=adapter.alpha,
        gate=adapter.gate,
        activation=adapter.activation,
        placement=adapter.placement,
        sites=tuple(adapter.sites),
        slot_rule=adapter.slot_rule,
        trained=adapter.trained,
        deviation=adapter.deviation,
    )


def _unlike(parts: Sequence[Part]) -> list[str]:
    """Where groups differ in what must be one for their branches to be shared."""
    problems = []
    for key in _ONE_FOR_ALL:
        values = {part.label: getattr(part.config.adapter, key) for part in parts}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{label} {value!r}" for label, value in values.items())
            problems.append(
                f"adapter.{key} is not the same in all groups ({told}), so their branches cannot be shared; set it in "
                "[adapter] and leave it out of the groups"
            )
    return problems


def _no_factors(config: Config, settings: Mapping[str, Any], kind: str) -> list[str]:
    """What of the method and its settings needs low-rank factors, which this kind has not."""
    name, rule, here, problems = config.method.name, config.aggregation.rule, f"adapter.kind = '{kind}'", []
    fitting = (*ANY_TENSORS, "heterotune") if kind == "mixture" else ANY_TENSORS
    if name not in (*ANY_TENSORS, "heterotune"):
        problems.append(
            f"method.name = '{name}': is made of LoRA factors, and {here} has none; set adapter.kind = 'lora', or take "
            f"one of {', '.join(fitting)}"
        )
    if rule in ("flexlora", "hetlora", "flora", "fedex-lora", "lora-fair"):
        problems.append(
            f"aggregation.rule = '{rule}': combines LoRA factors, and {here} has none; set aggregation.rule = 'mean'"
        )
    if name == "fed-hello" and settings.get("allocation") == "fim":
        problems.append(
            f"method.allocation = 'fim': scores LoRA factors, and {here} has none; set method.allocation = 'gd' or "
            "'rgd'"
        )
    return problems


def _odd_ranks(parts: Sequence[Part]) -> list[str]:
    """Ranks of clients whose adapters have one rank for all, or none."""
    problems = []
    for part in parts:
        adapter, ranks = part.config.adapter, part.config.clients.ranks or ()
        unlike = sorted({rank for rank in ranks if adapter.kind == "full" or rank != adapter.rank})
        if adapter.kind == "lora" or not unlike:
            continue
        key = "clients.ranks" if not part.label else f"groups[{part.place}].rank"
        told = f"{key} holds {', '.join(map(str, unlike))} and "
        problems.append(
            f"{told}adapter.kind = 'full' has no adapters that could have a rank; leave {key} out"
            if adapter.kind == "full"
            else f"{told}adapter.rank is {adapter.rank}: the branches of adapter.kind = 'mixture' have one rank; leave "
            f"{key} out"
        )
    return problems
