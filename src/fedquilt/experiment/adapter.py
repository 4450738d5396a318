"""Which adapters a method can train: what the config and its groups ask for, against what the method is made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError

ANY_TENSORS = ("fedit", "fed-hello", "fedra", "exclusive", "straggler", "local-only", "full")
"""Methods that need no low-rank factors, only tensors that a mean can be taken of."""

_ONE_FOR_ALL = ("kind", "rank", "sites", "trained", "num_slots", "branches")
"""Keys of [adapter] that must be the same in all groups for their branches to be shared."""


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
