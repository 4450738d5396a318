"""The section of a run file on what is trained: low-rank adapters, dense mixtures of adapters, or the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from fedquilt.config.value_types import STRICT, Few, Rank, Rate, Share, Strength, Text

_LORA = ("dropout", "rslora", "targets")
_MIXTURE = (
    *("activation", "gate", "placement", "sites", "slot_rule", "num_slots", "branches", "trained", "deviation"),
)
OF_KIND: Mapping[str, tuple[str, ...]] = {
    "lora": ("rank", "alpha", *_LORA),
    "mixture": ("rank", "alpha", *_MIXTURE),
    "full": ("buffers",),
}
"""The keys that each kind has besides ``kind``."""


class Adapter(BaseModel):
    """The adapters that are trained.

    ``dropout``, ``rslora`` and ``targets`` are of the kind ``lora``; the keys from ``activation`` on of ``mixture``;
    ``full`` has ``buffers`` alone.
    """

    model_config = STRICT

    kind: Literal["lora", "mixture", "full"] = "lora"
    """``lora``: two low-rank factors at every target. ``mixture``: after attention and after the feed-forward part,
    projections of the model's own width around a dense mixture of branches that all models share (``heterotune``).
    ``full``: no adapter; all of the model's weights are trained and travel: what adapters are compared with."""
    rank: Rank = 16
    """Rank r of every adapter; of a mixture, the width of its narrow space."""
    alpha: Rate = 16.0
    """Numerator of the scale alpha / r."""
    dropout: Share = 0.0
    """Dropout on the adapter's input."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""
    targets: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)] | None = None
    """Names of the linear modules that get an adapter; the model's query and value projections if left out."""
    activation: Literal["gelu", "identity"] = "gelu"
    """In the narrow space; with ``identity``, and no token gates, the mixture is linear and folds into weights."""
    gate: Literal["uniform", "static", "token"] = "static"
    """What each branch weighs: all alike, learned numbers of each site, or a learned map of each token."""
    placement: Literal["serial", "parallel"] = "serial"
    """Whether the adapter reads the output of the part that it stands after, or the input of its last module."""
    sites: Annotated[tuple[Literal["attention", "feed-forward"], ...], Field(min_length=1, max_length=2)] = (
        "attention",
        "feed-forward",
    )
    """The parts of a block that have an adapter; the same for all that share branches."""
    slot_rule: Literal["relative", "spaced", "top"] = "relative"
    """Which depth slot a block has: by relative depth; equally spaced blocks one each; or counted from the top."""
    num_slots: Annotated[int, Field(ge=1, le=256)] | None = None
    """Depth slots, each with branches of its own; as many as the shallowest model has blocks if left out."""
    branches: Few | None = None
    """Branches of each slot and site; as many as there are architectures if left out."""
    trained: Literal["own", "all"] = "all"
    """Branches that a client trains: that of its architecture beside frozen foreign ones, or all."""
    deviation: Strength | None = None
    """Branches are drawn with variance ``deviation^2 / r``; if left out 0 with ``own`` and 0.02 with ``all``."""

    buffers: Literal["average", "local"] = "average"
    """What happens to running statistics and their like (batch normalisation): they travel and are averaged as the
    weights are, or each client keeps its own. With adapters they stay those of the base."""

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
    """Keys of [adapter] that a group has of its own; whether they go with the kind is seen when both are known."""

    @model_validator(mode="after")
    def _keys_are_of_its_kind(self) -> OwnAdapter:
        return self


def of_kind(keys: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Keys of [adapter] without those that another kind has and this kind has not."""
    foreign = _foreign(kind) if kind != keys.get("kind", "lora") else ()
    return {key: value for key, value in keys.items() if key not in foreign}


def odd_keys(adapter: Adapter) -> list[str]:
    """The keys that have another value than their default, and which adapters of this kind have not."""
    fields: dict[str, Any] = dict(Adapter.model_fields)
    return [key for key in _foreign(adapter.kind) if getattr(adapter, key) != fields[key].default]


def _foreign(kind: Any) -> list[str]:
    """The keys that belong to other kinds alone."""
    every = dict.fromkeys(key for keys in OF_KIND.values() for key in keys)
    own = OF_KIND.get(kind, every) if isinstance(kind, str) else every
    return [key for key in every if key not in own]
