"""Configs of run files with mistakes, so that the correct keys can still be checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedquilt.adapters.settings import Adapter
from fedquilt.config.error_text import from_details
from fedquilt.config.parties import Party
from fedquilt.config.rejected_values import Spoilt
from fedquilt.config.schema import SECTIONS, Config, Group
from fedquilt.config.sections import fields_of
from fedquilt.config.server import Server
from fedquilt.config.toml import Key, within_limits
from fedquilt.core.endpoint import Endpoint
from fedquilt.core.errors import ConfigError
from fedquilt.core.parties import VERTICAL

_STAND_INS: dict[tuple[str, ...], Any] = {
    ("model",): {},
    ("model", "name"): "tiny:vit",
    ("model", "task"): "image-classification",
    ("data",): {},
    ("data", "source"): "sklearn:digits",
    ("label",): "stands in",
    ("budget",): 1,
    ("server", "model", "name"): "tiny:llama",
    ("server", "model", "task"): "causal-lm",
    ("server", "endpoint", "url"): "http://127.0.0.1/v1",
    ("server", "endpoint", "name"): "stands in",
    ("server", "data"): {},
    ("server", "data", "source"): "arithmetic:blank",
    ("server", "private", "source"): "arithmetic:blank",
}
"""Stand-ins for keys without a default; those of a group are relative to its entry."""


_TOGETHER = {
    "partition": ("test_fraction", "validation_fraction"),
    "clients": ("shares", "budgets", "ranks"),
    "data": ("columns", "categorical", "ranges", "categories"),
    "training": ("steps", "epochs"),
    "adapter": tuple(name for name in fields_of(Adapter) if name != "kind"),
}
"""Keys of a section that its own validator checks against one another."""

ALLOWED = {key: tuple(fields_of(section)) for key, section in SECTIONS.items()} | {"": tuple(Config.model_fields)}
ALLOWED |= {"groups[]": tuple(Group.model_fields)} | {
    f"groups[].{key}": tuple(fields_of(SECTIONS[key])) for key in Group.model_fields if key in SECTIONS
}
ALLOWED |= {"parties[]": tuple(Party.model_fields)} | {
    f"parties[].{key}": tuple(fields_of(SECTIONS[key])) for key in Party.model_fields if key in SECTIONS
}
ALLOWED |= {f"server.{key}": tuple(fields_of(SECTIONS[key])) for key in Server.model_fields if key in SECTIONS}
ALLOWED["server.private"] = ALLOWED["data"]
ALLOWED["server.endpoint"] = tuple(fields_of(Endpoint))
"""The keys that each table may hold."""


def repaired(raw: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The config of raw tables, with a default or stand-in for every wrong key, which is marked as ``spoilt``.

    The problems are those of each section by itself.
    """
    taken = within_limits(raw)
    left, problems = _copied(taken.tables), [*taken.problems]
    _count_parties(left)
    spoilt = {key for wrong in taken.refused for key in _removed(left, wrong)}
    first = True
    while True:
        try:
            # in JSON mode pydantic's strict types accept a list as a tuple and an integer as a float, and nothing else
            config = Config.model_validate_json(json.dumps(left))
            return config.marked(Spoilt(spoilt)), problems
        except ValidationError as error:
            found = error.errors(include_url=False)
        before, known = _copied(left), Spoilt(spoilt)
        problems += from_details([one for one in found if _is_news(one, known, first)], allowed=ALLOWED)
        for details in found:
            missing, key = details["type"] == "missing", details["loc"]
            spoilt |= {_filled(left, key)} if missing else _removed(left, key)
        if left == before:
            raise ConfigError(problems or from_details(found, allowed=ALLOWED))
        first = False


def _is_news(details: ErrorDetails, spoilt: Spoilt, first: bool) -> bool:
    """Whether a mistake is in the file; some are only found once others are repaired."""
    keys = [".".join(map(str, key)) for key in _culprits(details["loc"])]
    return (first or details["type"] == "value_error") and not spoilt.touches(*keys)


def _culprits(key: Key) -> list[Key]:
    """The keys that make a section wrong as a whole; otherwise the key itself."""
    return [(*key, name) for name in _TOGETHER.get(str(key[-1]), ())] or [key]


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _removed(tables: dict[str, Any], key: Key) -> set[Key]:
    """Remove the value at a key, or the smallest table that holds it; returns the removed keys."""
    table, rest = _table_of(tables, key)
    before, inner = key[: len(key) - len(rest)], table.get(rest[0])
    if isinstance(inner, dict):
        names = rest[1:2] or _TOGETHER.get(str(rest[0]), ())
        if found := [name for name in names if name in inner or len(rest) == 1]:
            for name in found:
                inner.pop(name, None)
            return {(*before, rest[0], name) for name in found}
    table.pop(rest[0], None)
    return {(*before, rest[0])}


def _filled(tables: dict[str, Any], key: Key) -> Key:
    """Put a stand-in in place of a missing value; returns its key."""
    table, rest = _table_of(tables, key)
    for name in rest[:-1]:
        table = table.setdefault(name, {})
    table[rest[-1]] = _copied(_STAND_INS[rest])
    return key


def _table_of(tables: dict[str, Any], key: Key) -> tuple[dict[Any, Any], Any]:
    """The table of the key's sections (a group's, a party's or the whole), and the rest of the key."""
    entries = tables.get(str(key[0])) if key[0] in ("groups", "parties") else None
    if len(key) > 2 and isinstance(entries, list):
        entry = entries[key[1]]  # type: ignore[index]
        if isinstance(entry, dict):
            return entry, key[2:]
    return tables, key


def _count_parties(tables: dict[str, Any]) -> None:
    """Fill in the number of clients of a vertical federation, which are its passive parties, in place."""
    partition, parties = tables.get("partition"), tables.get("parties")
    if isinstance(partition, dict) and isinstance(parties, list) and partition.get("scheme") == VERTICAL:
        partition.setdefault("num_clients", max(1, len(parties) - 1))
