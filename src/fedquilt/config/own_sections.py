"""The keys of sections that a group, a party or the server sets for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fedquilt.adapters.settings import Adapter, of_kind
from fedquilt.config.clients import Partition
from fedquilt.config.parties import Party
from fedquilt.config.schema import Config, Group, Head
from fedquilt.config.sections import Section, values_of
from fedquilt.config.server import Server
from fedquilt.core.training import Training

OWN_SECTIONS: Mapping[str, Section] = {
    "partition": Partition,
    "adapter": Adapter,
    "head": Head,
    "training": Training,
}
"""Sections in which a group replaces single keys; it replaces ``model`` and ``data`` as a whole."""


def own_keys(config: Config, owner: Group | Party | Server) -> dict[str, dict[str, Any]]:
    """The keys of each section that a group or the server may change in part, with its own values."""
    made = {}
    for name in OWN_SECTIONS:
        own: BaseModel | None = getattr(owner, name, None)
        keys, change = values_of(getattr(config, name)), {} if own is None else own.model_dump(exclude_unset=True)
        if name == "training" and not change.keys().isdisjoint(("steps", "epochs")):
            keys |= {"steps": None, "epochs": None}
        if name == "partition" and change.get("scheme", keys["scheme"]) != keys["scheme"]:
            keys = {key: value for key, value in keys.items() if key in Partition.model_fields}
        if name == "adapter":
            keys = of_kind(keys, change.get("kind", keys["kind"]))
        made[name] = keys | change
    return made


def as_written(owner: Group | Party | Server) -> dict[str, Any]:
    """A group or the server as JSON values; of sections that it changes in part, only the keys that it sets."""
    return {
        **owner.model_dump(mode="json", exclude=set(OWN_SECTIONS), exclude_none=True),
        **owner.model_dump(mode="json", include=set(OWN_SECTIONS), exclude_unset=True, exclude_none=True),
    }
