"""Changes to a run file's tables: ``key=value`` on the command line, and the entries of [[compare]]."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from fedquilt.adapters.settings import of_kind
from fedquilt.config.clients import Partition
from fedquilt.config.error_text import shown, unknown
from fedquilt.config.schema import SECTIONS, Config, Group, Method
from fedquilt.config.toml import is_unicode, parsed_toml
from fedquilt.config.unused_keys import still_applies

_NUMBER = re.compile(r"[-+]?[0-9.]+|true|false")

NOT_COMPARED = ("name", "seed", "seeds", "output", "compare")


def changes_of(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The tables of the valid overrides, and the problems of the others."""
    changes: dict[str, Any] = {}
    problems = []
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        parts = key.split(".")
        if not is_unicode(override):
            problems.append(f"override {override!a}: holds bytes that are not UTF-8 text")
            continue
        if not equals or not all(parts) or len(parts) > 2:
            problems.append(
                f"override '{override}': must look like key=value or section.key=value, as in training.steps=5"
            )
            continue
        try:
            value = _toml_value(text)
        except ValueError as error:
            problems.append(f"override '{override}': the value cannot be read as TOML: {error}{_in_quotes(key, text)}")
            continue
        table = changes
        if len(parts) == 2:
            if not isinstance(changes.get(parts[0]), dict):
                changes[parts[0]] = {}
            table = changes[parts[0]]
        table[parts[-1]] = value
    return changes, problems


def _in_quotes(key: str, text: str) -> str:
    """How a list of words is written on a command line, where the shell takes quotes away; "" for other values."""
    if not text.startswith("["):
        return ""
    words = [word.strip().strip("'\"") for word in text[1:].removesuffix("]").split(",")]
    listed = ", ".join(word if _NUMBER.fullmatch(word) else f'"{word}"' for word in words if word)
    return f"; a list stands in quotes of its own, texts in double ones: '{key}=[{listed}]'"


def _toml_value(text: str) -> Any:
    try:
        table = parsed_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        if not text or text[0] in "'\"[{":
            raise
        return text
    # a line break in the text could have opened further keys
    return table["value"] if len(table) == 1 else text


def with_changes(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The raw tables with the overrides, which also apply to entries of [[compare]] that do not set the key.

    The second result lists the overrides without effect because every entry, or every group, sets the key itself.
    """
    made = overlaid(raw, changes)
    own = {key: value for key, value in _table(changes, "method").items() if key != "name"}
    if own and isinstance(made.get("compare"), list):  # an entry's method replaces the file's
        made["compare"] = [
            {**entry, "method": {**own, **entry["method"]}} if _table(entry, "method") else entry
            for entry in made["compare"]
        ]
    entries = entries_of(made)[0]
    variants = [variant for _, variant in entries]
    problems = []
    for section, key, value in _settings(changes):
        if variants and not any(_reaches(variant, section, key, value) for variant in variants):
            name, text = f"{section}.{key}" if section else key, shown(value)
            who = "entry of [[compare]]" if made.get("compare") else "group"
            problems.append(
                f"override {name} = {text}: every {who} says otherwise itself, so that nothing would come of it; "
                "change it there, or leave this out"
            )
    return made, problems


def _settings(changes: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """The section ("" for none), key and value of each override that entries or groups could set themselves."""
    return [
        (section if isinstance(change, dict) else "", key, value)
        for section, change in changes.items()
        if section not in NOT_COMPARED
        for key, value in (change.items() if isinstance(change, dict) else [(section, change)])
    ]


def _reaches(variant: Mapping[str, Any], section: str, key: str, value: Any) -> bool:
    """Whether a variant, or at least one of its groups, has this value of a key."""
    if not section:
        return bool(variant.get(key) == value)
    if _table(variant, section).get(key) != value:
        return False
    groups = variant.get("groups")
    if not isinstance(groups, list) or not groups or section not in Group.model_fields:
        return True
    for group in groups:
        base, own = {key: value}, _table(group, section)
        whole = own or base if section in ("model", "data") else _kept(section, base, own) | own
        if whole.get(key) == value:
            return True
    return False


def _table(tables: Any, key: str) -> dict[str, Any]:
    """The table of this key, empty if there is none."""
    table = tables.get(key) if isinstance(tables, Mapping) else None
    return table if isinstance(table, dict) else {}


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """New tables: those of ``base`` with the changes, key by key where both have a section."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for key, change in changes.items():
        old = result.get(key, {})
        if key in SECTIONS and isinstance(change, dict) and isinstance(old, dict):
            result[key] = _kept(key, old, change) | change
        else:
            result[key] = dict(change) if isinstance(change, dict) else change
    return result


def _kept(section: str, old: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The keys of a table that remain under ``change``: settings of a choice that it replaces are dropped."""
    old = still_applies(section, old, change)
    if section == "training" and not change.keys().isdisjoint(("steps", "epochs")):
        return {key: value for key, value in old.items() if key not in ("steps", "epochs")}
    if section == "adapter":
        return of_kind(old, change.get("kind", old.get("kind", "lora")))
    for name, model, choice in (("method", Method, "name"), ("partition", Partition, "scheme")):
        before = old.get(choice, model.model_fields[choice].default)
        if section == name and change.get(choice, before) != before:
            return {key: value for key, value in old.items() if key in model.model_fields}
    return old


def entries_of(raw: Mapping[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """The label and raw tables of each [[compare]] entry, or of the file itself without entries, and the problems."""
    base = {key: value for key, value in raw.items() if key != "compare"}
    entries = raw.get("compare") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return [], []  # the schema reports this
    made: dict[str, dict[str, Any]] = {}
    problems = []
    allowed = ("label", *(key for key in Config.model_fields if key not in NOT_COMPARED))
    for number, entry in enumerate(entries or [{}]):
        where = f"compare[{number}]"
        problems += [unknown(f"{where}.{key}", value, allowed) for key, value in entry.items() if key not in allowed]
        changes = {key: value for key, value in entry.items() if key in allowed and key != "label"}
        variant = overlaid(base, changes)
        if "method" in entry:
            variant["method"] = entry["method"]
            if isinstance(entry["method"], dict) and "name" not in entry["method"]:
                problems.append(f"{where}.method: missing name; the table replaces the file's [method], name and all")
        method = variant.get("method", {})
        name = method.get("name", Method().name) if isinstance(method, dict) else where
        label = entry.get("label", name)
        if not isinstance(label, str) or not label:
            problems.append(f"{where}.label = {shown(label)}: must be text")
        elif label in made:
            problems.append(f"{where}.label = {shown(label)}: stands twice; give every entry a label of its own")
        made[label if isinstance(label, str) else shown(label)] = variant
    return list(made.items()), problems
