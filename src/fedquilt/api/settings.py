"""Conversion of the API's arguments to the tables of a run file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedquilt.api.objects import Objects, taken_out
from fedquilt.config.load import load, resolved
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError

ConfigLike = Mapping[str, Any] | Config | str | Path | None
"""The tables of a run file, a checked config, the path of a run file, or None."""

CHOICES = {
    "adapter": "kind",
    "aggregation": "rule",
    "data": "source",
    "head": "policy",
    "method": "name",
    "model": "name",
    "partition": "scheme",
    "privacy": "mode",
    "private": "source",
    "track": "to",
}
"""The main key of each section: ``method="fedit"`` means ``method={"name": "fedit"}``. ``private`` is of ``server``."""


class Asked(NamedTuple):
    """A run file or its tables, the tables that override it, and the objects by their names in both."""

    source: Path | dict[str, Any]
    sections: dict[str, Any]
    objects: Objects


def asked(config: ConfigLike, sections: Mapping[str, Any]) -> Asked:
    """The tables and objects of a config with overriding sections.

    Raises
    ------
    ConfigError
        if ``config`` has another type than ``ConfigLike``.
    """
    objects: Objects = {}
    over = tables_of(taken_out(sections, objects))
    if isinstance(config, str | Path):
        return Asked(Path(config), over, objects)
    if isinstance(config, Config):
        return Asked(resolved(config), over, {**config.objects, **objects})
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(
            f"config = {config!r:.200}: must be a dictionary of sections, a Config, the path of a run file, or left out"
        )
    return Asked(tables_of(taken_out(config or {}, objects)), over, objects)


def tables_of(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections given in Python as tables of TOML.

    Text in place of a section in ``CHOICES``, also in a group, an entry of a comparison or the server, sets the
    section's main key; ``task`` sets ``model.task``.
    """
    made = {key: _plain(value) for key, value in sections.items()}
    for section, key in CHOICES.items():
        for table in _tables(made):
            if isinstance(table.get(section), str):
                table[section] = {key: table[section]}
    if "task" in made:
        task = made.pop("task")
        model = made.get("model", {})
        made["model"] = {**model, "task": task} if isinstance(model, dict) else model
    return made


def _tables(made: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of all sections, and the groups, entries of a comparison and servers in it."""
    found = [made, *_entries(made.get("groups")), *_entries(made.get("compare"))]
    return [*found, *_entries([table.get("server") for table in found])]


def _entries(value: Any) -> list[dict[str, Any]]:
    """The tables of a list; other entries are reported by the schema."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def settled(config: ConfigLike, sections: Mapping[str, Any]) -> Config:
    """The checked config; ``sections`` override ``config`` key by key.

    Raises
    ------
    ConfigError
        with every problem of the two.
    """
    wanted = asked(config, sections)
    return load(wanted.source, wanted.sections)[0].with_objects(wanted.objects)


def _plain(value: Any) -> Any:
    """The value with only dictionaries, lists, numbers and text in place of other Python types."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    # numbers of numpy and torch
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
