"""From a TOML file and ``key=value`` overrides to a checked Config, with every problem at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fedquilt.config.adapter import of_kind
from fedquilt.config.groups import as_written, group_problems
from fedquilt.config.problems import from_validation, shown, unknown
from fedquilt.config.schema import Config, Group, Method, Partition
from fedquilt.core.errors import ConfigError

NOT_DETERMINING = (
    *("name", "seeds", "device", "output", "evaluation.last", "compare"),
    *("network.timeout", "network.wait", "network.grace", "checkpoints.keep"),
)
"""Keys that may differ between two runs of the same experiment: they choose where and which, not what comes out."""

_SECTIONS = {
    key: field.annotation
    for key, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
_ALLOWED = {key: tuple(section.model_fields) for key, section in _SECTIONS.items()} | {"": tuple(Config.model_fields)}
_ALLOWED |= {"groups[]": tuple(Group.model_fields)} | {
    f"groups[].{key}": tuple(_SECTIONS[key].model_fields) for key in Group.model_fields if key in _SECTIONS
}
_NOT_COMPARED = ("name", "seed", "seeds", "output", "compare")
_PATHS = (("data", "source"), ("data", "test"), ("model", "name"))


def load(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, dict[str, Any]]:
    """The checked config of a run file, and its raw tables after the overrides, from which ``variants`` are made.

    An override is ``key=value`` with a value as TOML writes it; a bare word is a string. Setting ``training.steps``
    removes ``training.epochs`` and the other way round; another ``method.name`` or ``partition.scheme`` removes the
    settings that belonged to the old one. In ``data.source``, ``data.test`` and ``model.name``, ``$NAME`` is an
    environment variable, and a path that starts with ``./`` or ``../`` or exists beside the file is relative to the
    file's folder.

    Raises
    ------
    ConfigError
        with every problem of the file, its overrides and its [[compare]] entries.
    """
    raw, _, problems = _examined(Path(path), overrides)
    config = _parsed(raw)[0]
    if problems or config is None:
        raise ConfigError(problems)
    return config, raw


def examine(path: str | Path, overrides: Sequence[str] = ()) -> tuple[list[str], list[tuple[str, Config]]]:
    """Every problem of a run file, and its variants by label as far as they can be made: what is wrong is left out.

    So that what is right can still be checked against the data and the model.

    Raises
    ------
    ConfigError
        if the file cannot be read.
    """
    _, entries, problems = _examined(Path(path), overrides)
    made = [(label, _repaired(variant)) for label, variant in entries]
    return problems, [(label, config) for label, config in made if config is not None]


def parse(raw: Mapping[str, Any]) -> Config:
    """The checked config of raw tables (a variant, or a run folder's ``config.json``).

    Raises
    ------
    ConfigError
        with every problem found.
    """
    config, problems = _parsed(raw)
    if config is None:
        raise ConfigError(problems)
    return config


def variants(raw: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What a comparison runs: a label and raw tables for each [[compare]] entry; without entries, the file itself.

    An entry's ``method`` table replaces the file's; of other tables, the keys that the entry names are replaced. An
    entry without ``label`` is labelled by its method.

    Raises
    ------
    ConfigError
        for an entry that holds an unknown key, and for a label that stands twice.
    """
    entries, problems = _variants(raw)
    if problems:
        raise ConfigError(problems)
    return entries


def resolved(config: Config) -> dict[str, Any]:
    """Every key of the config with its value, as JSON can write it; ``parse`` reads it back.

    Without groups there is no key ``groups``; with them, none of what each group says itself.
    """
    keys = config.model_dump(mode="json", exclude={"groups"})
    if config.groups:
        keys["groups"] = as_written(config.groups)
        for said in ("shares", "budgets", "ranks"):
            del keys["clients"][said]
    return keys


def digest(config: Config) -> str:
    """The sha256 of what determines a run's result: every key but those of ``NOT_DETERMINING``."""
    keys = resolved(config)
    for name in NOT_DETERMINING:
        section, _, key = name.rpartition(".")
        (keys[section] if section else keys).pop(key)
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def _examined(
    path: Path, overrides: Sequence[str]
) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]], list[str]]:
    """The raw tables after the overrides, the variants' raw tables by label, and every problem of both."""
    raw = _read(path)
    changes, problems = _changes(overrides)
    raw = _overlaid(raw, changes)
    raw.setdefault("name", path.stem)
    problems += _place(raw, path.parent)
    problems += _parsed(raw)[1]
    entries, found = _variants(raw)
    problems += found
    for label, variant in entries if raw.get("compare") else ():
        problems += [f"compare '{label}': {problem}" for problem in _parsed(variant)[1] if problem not in problems]
    return raw, entries, problems


def _repaired(raw: Mapping[str, Any]) -> Config | None:
    """The config of raw tables without the keys that are wrong, or None if a key is missing that has no default."""
    left = deepcopy(dict(raw))
    while True:
        try:
            return Config.model_validate_json(json.dumps(left, default=str))
        except ValidationError as error:
            found = error.errors(include_url=False)
        before = deepcopy(left)
        for section, *keys in (details["loc"] for details in found if details["type"] != "missing"):
            table = left.get(str(section))
            if section == "groups" and isinstance(table, list) and len(keys) > 1:
                table, keys = table[int(keys[0])], keys[1:]
                if len(keys) > 1 and isinstance(table.get(keys[0]), dict):
                    table, keys = table[keys[0]], keys[1:]
                table.pop(keys[0], None)
            elif keys and isinstance(table, dict) and keys[0] in table:
                del table[keys[0]]
            elif not keys or not isinstance(table, dict):  # else an earlier problem with the same key removed it
                left.pop(str(section), None)
        if left == before:
            return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path}: not valid TOML: {error}; text stands in quotes, tables start with [name]"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; the folder searched is {path.parent.resolve()}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from error


def _changes(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    changes: dict[str, Any] = {}
    problems = []
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        parts = key.split(".")
        if not equals or not all(parts) or len(parts) > 2:
            problems.append(
                f"override '{override}': must look like key=value or section.key=value, as in training.steps=5"
            )
            continue
        try:
            value = _toml_value(text)
        except tomllib.TOMLDecodeError as error:
            problems.append(f"override '{override}': the value cannot be read as TOML: {error}")
            continue
        table = changes
        if len(parts) == 2:
            if not isinstance(changes.get(parts[0]), dict):
                changes[parts[0]] = {}
            table = changes[parts[0]]
        table[parts[-1]] = value
    return changes, problems


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        if not text or text[0] in "'\"[{":
            raise
        return text
    # a line break in the text could have opened further keys
    return table["value"] if len(table) == 1 else text


def _overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = deepcopy(dict(base))
    for key, change in changes.items():
        old = result.get(key, {})
        if key in _SECTIONS and isinstance(change, dict) and isinstance(old, dict):
            result[key] = _kept(key, old, change) | deepcopy(change)
        else:
            result[key] = deepcopy(change)
    return result


def _kept(section: str, old: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """What of a table stays when ``change`` is laid over it: not the settings of a choice that is no longer made."""
    if section == "training" and not change.keys().isdisjoint(("steps", "epochs")):
        return {key: value for key, value in old.items() if key not in ("steps", "epochs")}
    if section == "adapter":
        return of_kind(old, change.get("kind", old.get("kind", "lora")))
    for name, model, choice in (("method", Method, "name"), ("partition", Partition, "scheme")):
        before = old.get(choice, model.model_fields[choice].default)
        if section == name and change.get(choice, before) != before:
            return {key: value for key, value in old.items() if key in model.model_fields}
    return old


def _place(raw: dict[str, Any], folder: Path) -> list[str]:
    """Fill in environment variables and the file's folder, in place; gives the problems."""
    problems = []
    tables = [raw, *_entries(raw, "compare")]
    tables += [group for table in tables for group in _entries(table, "groups")]
    for table in tables:
        for section, key in _PATHS:
            keys = table.get(section) if isinstance(table, dict) else None
            value = keys.get(key) if isinstance(keys, dict) else None
            if not isinstance(keys, dict) or not isinstance(value, str) or not value:
                continue
            for variable in re.findall(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)", value):
                if variable not in os.environ:
                    problems.append(
                        f"{section}.{key} = {shown(value)}: the environment variable {variable} is not set; "
                        f"set it to the folder that holds the files, as in {variable}=/path/to/folder fedquilt ..."
                    )
            keys[key] = _placed(os.path.expandvars(value), folder)
    return problems


def _entries(table: Any, key: str) -> list[Any]:
    entries = table.get(key) if isinstance(table, dict) else None
    return entries if isinstance(entries, list) else []


def _placed(value: str, folder: Path) -> str:
    value = os.path.expanduser(value)
    one = value.replace("{client}", "0")  # a source for each client
    if value.startswith(("./", "../")) or (folder / one).exists():
        return os.path.abspath(folder / value)
    return value


def _parsed(raw: Mapping[str, Any]) -> tuple[Config | None, list[str]]:
    try:
        # read as JSON, pydantic's strict types take a list for a tuple and a whole number for a float, and nothing else
        config = Config.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        left = _repaired(raw)
        return None, [*from_validation(error, allowed=_ALLOWED), *(group_problems(left) if left else ())]
    problems = group_problems(config)
    return (None if problems else config), problems


def _variants(raw: Mapping[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    base = {key: value for key, value in raw.items() if key != "compare"}
    entries = raw.get("compare") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return [], []  # the schema speaks of this
    made: list[tuple[str, dict[str, Any]]] = []
    problems = []
    allowed = ("label", *(key for key in _ALLOWED[""] if key not in _NOT_COMPARED))
    for number, entry in enumerate(entries or [{}]):
        where = f"compare[{number}]"
        problems += [unknown(f"{where}.{key}", value, allowed) for key, value in entry.items() if key not in allowed]
        changes = {key: value for key, value in entry.items() if key in allowed and key != "label"}
        variant = _overlaid(base, changes)
        if "method" in entry:
            variant["method"] = deepcopy(entry["method"])
            if isinstance(entry["method"], dict) and "name" not in entry["method"]:
                problems.append(f"{where}.method: missing name; the table replaces the file's [method], name and all")
        method = variant.get("method", {})
        name = method.get("name", Method().name) if isinstance(method, dict) else where
        label = entry.get("label", name)
        if not isinstance(label, str) or not label:
            problems.append(f"{where}.label = {shown(label)}: must be text")
        elif label in (other for other, _ in made):
            problems.append(f"{where}.label = {shown(label)}: stands twice; give every entry a label of its own")
        made.append((str(label), variant))
    return made, problems
