"""What a caller gives as a config, with keywords on top, made into the tables of a run file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedquilt.api.objects import Objects, taken_out
from fedquilt.config.load import load, resolved
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError

ConfigLike = Mapping[str, Any] | Config | str | Path | None
"""Tables as a run file holds them, a checked config, the path of a run file, or nothing."""

CHOICES = {
    "adapter": "kind",
    "aggregation": "rule",
    "data": "source",
    "head": "policy",
    "method": "name",
    "model": "name",
    "partition": "scheme",
    "privacy": "mode",
}
"""The key that a section's text stands for: ``method="fedit"`` is ``method={"name": "fedit"}``."""


class Asked(NamedTuple):
    """A run file or tables, the tables that are laid over it, and the objects that names in either stand for."""

    source: Path | dict[str, Any]
    sections: dict[str, Any]
    objects: Objects


def asked(config: ConfigLike, sections: Mapping[str, Any]) -> Asked:
    """What a caller means by a config with sections on top.

    Raises
    ------
    ConfigError
        if ``config`` is nothing that could be one.
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
    """Tables as TOML would hold them, of sections as Python may give them.

    Text in place of one of the sections in ``CHOICES``, also of a group or an entry of a comparison, is that section's
    first choice; ``task`` is the model's.
    """
    made = {key: _plain(value) for key, value in sections.items()}
    for section, key in CHOICES.items():
        for table in (made, *_entries(made.get("groups")), *_entries(made.get("compare"))):
            if isinstance(table.get(section), str):
                table[section] = {key: table[section]}
    if "task" in made:
        task = made.pop("task")
        told = made.get("model", {})
        made["model"] = {**told, "task": task} if isinstance(told, dict) else told
    return made


def _entries(value: Any) -> list[dict[str, Any]]:
    """The tables of a list; what else is in it the schema speaks of."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def settled(config: ConfigLike, sections: Mapping[str, Any]) -> Config:
    """The checked config; ``sections`` are laid over ``config`` key by key.

    Raises
    ------
    ConfigError
        with every problem of the two.
    """
    wanted = asked(config, sections)
    return load(wanted.source, wanted.sections)[0].with_objects(wanted.objects)


def _plain(value: Any) -> Any:
    """The value with dictionaries, lists, numbers and text in place of what Python has for these."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    # numbers of numpy and torch
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
