"""The section [adapter] of a run file: LoRA, mixtures of adapters, or full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from fedquilt.config.strict import STRICT
from fedquilt.core.settings import Few, Rank, Rate, Share, Strength, Text

_LORA = ("dropout", "rslora", "targets")
_MIXTURE = (
    *("activation", "gate", "placement", "sites", "slot_rule", "num_slots", "branches", "trained", "deviation"),
)
OF_KIND: Mapping[str, tuple[str, ...]] = {
    "lora": ("rank", "alpha", *_LORA),
    "mixture": ("rank", "alpha", *_MIXTURE),
    "full": ("buffers",),
}
"""The keys of each kind, in addition to ``kind``."""


class Adapter(BaseModel):
    """The trained adapters.

    ``dropout``, ``rslora`` and ``targets`` belong to the kind ``lora``, and the keys from ``activation`` on to
    ``mixture``; ``full`` has only ``buffers``.
    """

    model_config = STRICT

    kind: Literal["lora", "mixture", "full"] = "lora"
    """``lora``: two low-rank factors at every target. ``mixture``: after attention and after the feed-forward part,
    projections of the model's width around a dense mixture of branches that all models can share (``heterotune``).
    ``full``: full fine-tuning; all weights of the model are trained and sent, as a baseline for adapters."""
    rank: Rank = 16
    """Rank r of every adapter; for a mixture, the dimension of its low-dimensional space."""
    alpha: Rate = 16.0
    """Numerator of the scale alpha / r."""
    dropout: Share = 0.0
    """Dropout on the adapter's input."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""
    targets: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)] | None = None
    """Names of the linear modules that get an adapter; the model's query and value projections if left out."""
    activation: Literal["gelu", "identity"] = "gelu"
    """Activation in the low-dimensional space; with ``identity`` and without token gates, the mixture is linear and can
    be merged into the weights."""
    gate: Literal["uniform", "static", "token"] = "static"
    """Weights of the branches: equal, learned per site, or a learned function of each token."""
    placement: Literal["serial", "parallel"] = "serial"
    """Input of the adapter: the output of the part that it follows (``serial``), or the input of that part's last
    module (``parallel``)."""
    sites: Annotated[tuple[Literal["attention", "feed-forward"], ...], Field(min_length=1, max_length=2)] = (
        "attention",
        "feed-forward",
    )
    """Parts of a block with an adapter; the same in all groups that share branches."""
    slot_rule: Literal["relative", "spaced", "top"] = "relative"
    """Depth slot of a block: by relative depth; equally spaced blocks one each; or counted from the last block."""
    num_slots: Annotated[int, Field(ge=1, le=256)] | None = None
    """Number of depth slots, each with its own branches; the number of blocks of the shallowest model if left out."""
    branches: Few | None = None
    """Number of branches of each slot and site; the number of architectures if left out."""
    trained: Literal["own", "all"] = "all"
    """Branches that a client trains: only that of its architecture (``own``), or all."""
    deviation: Strength | None = None
    """Branches are drawn with variance ``deviation^2 / r``; if left out 0 with ``own`` and 0.02 with ``all``."""

    buffers: Literal["average", "local"] = "average"
    """Running statistics and similar buffers (batch normalisation): sent and averaged like the weights, or local to
    each client. With adapters they stay those of the base."""

    @model_validator(mode="after")
    def _keys_are_of_its_kind(self) -> Adapter:
        if odd := odd_keys(self):
            other = " or ".join(f"'{kind}'" for kind, keys in OF_KIND.items() if not set(keys).isdisjoint(odd))
            raise ValueError(
                f"{' and '.join(odd)} {'is' if len(odd) == 1 else 'are'} of kind = {other} alone, and this is "
                f"'{self.kind}'; leave {'it' if len(odd) == 1 else 'them'} out, or set kind = {other}"
            )
        return self


class OwnAdapter(Adapter):
    """The keys of [adapter] that a group sets itself; they are checked against the kind when both are known."""

    @model_validator(mode="after")
    def _keys_are_of_its_kind(self) -> OwnAdapter:
        return self


def of_kind(keys: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The keys of [adapter] without those that this kind does not have."""
    foreign = _foreign(kind) if kind != keys.get("kind", "lora") else ()
    return {key: value for key, value in keys.items() if key not in foreign}


def odd_keys(adapter: Adapter) -> list[str]:
    """The keys that differ from their default and that adapters of this kind do not have."""
    fields: dict[str, Any] = dict(Adapter.model_fields)
    return [key for key in _foreign(adapter.kind) if getattr(adapter, key) != fields[key].default]


def _foreign(kind: Any) -> list[str]:
    """The keys that only other kinds have."""
    every = dict.fromkeys(key for keys in OF_KIND.values() for key in keys)
    own = OF_KIND.get(kind, every) if isinstance(kind, str) else every
    return [key for key in every if key not in own]
