"""The section [adapter] of a run file: the keys of every kind of adapter, each of one kind or of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal

from fedquilt.adapters.common.settings import AnchoredKeys, CommonHeadKeys, CommonKeys
from fedquilt.adapters.lora.settings import LoraKeys
from fedquilt.adapters.mixture.settings import MixtureKeys


@dataclass(frozen=True)
class _Chosen:
    kind: Literal["lora", "mixture", "full", "common", "anchored"] = "lora"
    """``lora``: two low-rank factors at every target. ``mixture``: after attention and after the feed-forward part,
    projections of the model's width around a dense mixture of branches that all models can share (``heterotune``).
    ``full``: full fine-tuning; all weights of the model are trained and sent, as a baseline for adapters.
    ``common``: matrices in coordinates that all models have in common, found on public inputs (``[axes]``), and a
    common head, shared across architectures. ``anchored``: in some blocks a matrix and a vector between frozen factors,
    which are aligned to those of the smallest model on public inputs; plain LoRA in the other blocks."""


@dataclass(frozen=True)
class FullKeys:
    """The keys of full fine-tuning in a run file."""

    buffers: Literal["average", "local"] = "average"
    """Running statistics and similar buffers (batch normalisation): sent and averaged like the weights, or local to
    each client. With adapters they stay those of the base."""


KEYS: Mapping[str, type | None] = {
    "lora": LoraKeys,
    "mixture": MixtureKeys,
    "full": FullKeys,
    "common": CommonKeys,
    "anchored": AnchoredKeys,
}
"""The keys of each kind as a dataclass; None for a kind without keys."""

OF_KIND: Mapping[str, tuple[str, ...]] = {
    kind: () if keys is None else tuple(field.name for field in fields(keys)) for kind, keys in KEYS.items()
}
"""The names of the keys of each kind, in addition to ``kind``."""


@dataclass(frozen=True)
class Adapter(AnchoredKeys, CommonKeys, FullKeys, MixtureKeys, LoraKeys, _Chosen):  # the last base's keys come first
    """The trained adapters.

    The keys from ``dropout`` to ``alpha_pattern`` belong to the kind ``lora``, and those from ``activation`` to
    ``deviation`` to ``mixture``. Those from ``head_scale`` to ``parts`` are of ``common``, which has ``sites``,
    ``slot_rule`` and ``num_slots`` too. ``num_blocks`` and those after it are of ``anchored``, which has ``targets``
    and ``head_scale`` too; ``full`` has only ``buffers``.
    """

    def __post_init__(self) -> None:
        """Refuse keys of another kind, and patterns that are none."""
        if problems := self.pattern_problems():
            raise ValueError("; ".join(problems))
        if self.kind == "anchored" and not self.common_head and self.head_scale != CommonHeadKeys.head_scale:
            raise ValueError(
                f"head_scale = {self.head_scale:g}: has no effect without a common head; leave it out, or set "
                "adapter.common_head = true"
            )
        private = ("private_targets", "private_alpha", "parts")
        idle = [key for key in private if getattr(self, key) != getattr(CommonKeys, key)]
        if self.kind == "common" and idle and not self.private_rank:
            raise ValueError(
                f"{' and '.join(idle)}: no effect without a private LoRA; leave {'it' if len(idle) == 1 else 'them'} "
                "out, or set adapter.private_rank"
            )
        if odd := odd_keys(self):
            other = " or ".join(f"'{kind}'" for kind, keys in OF_KIND.items() if not set(keys).isdisjoint(odd))
            raise ValueError(
                f"{' and '.join(odd)} {'is' if len(odd) == 1 else 'are'} of kind = {other} alone, and this is "
                f"'{self.kind}'; leave {'it' if len(odd) == 1 else 'them'} out, or set kind = {other}"
            )


def at_most(adapter: Adapter, rank: int) -> Adapter:
    """The settings with no rank above this one."""
    pattern = {key: min(own, rank) for key, own in adapter.rank_pattern.items()}
    return replace(adapter, rank=min(adapter.rank, rank), rank_pattern=pattern)


def of_kind(keys: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The keys of [adapter] without those that this kind does not have."""
    foreign = _foreign(kind) if kind != keys.get("kind", "lora") else ()
    return {key: value for key, value in keys.items() if key not in foreign}


def odd_keys(adapter: Adapter) -> list[str]:
    """The keys that differ from their default and that adapters of this kind do not have."""
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(adapter)
    }
    return [key for key in _foreign(adapter.kind) if getattr(adapter, key) != defaults[key]]


def _foreign(kind: Any) -> list[str]:
    """The keys that only other kinds have."""
    every = dict.fromkeys(key for keys in OF_KIND.values() for key in keys)
    own = OF_KIND.get(kind, every) if isinstance(kind, str) else every
    return [key for key in every if key not in own]
