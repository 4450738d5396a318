"""Reading a run file with its overrides into a checked Config, with all problems at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from fedquilt.config.cross_checks import cross_problems
from fedquilt.config.error_text import shown
from fedquilt.config.groups import group_problems, server_problems
from fedquilt.config.overrides import changes_of, entries_of, with_changes
from fedquilt.config.own_sections import as_written
from fedquilt.config.parties import party_problems
from fedquilt.config.repair import repaired
from fedquilt.config.schema import Config
from fedquilt.config.toml import read_toml
from fedquilt.config.unused_keys import idle_problems
from fedquilt.core.errors import ConfigError

NOT_DETERMINING = (
    *("name", "seeds", "device", "output", "evaluation.last", "compare"),
    *("network.timeout", "network.wait", "network.grace", "network.node_keys", "checkpoints.keep", "engine.processes"),
    "track",
)
"""Keys that may differ between two runs of the same experiment, because they do not affect the results."""

_PATHS = (
    *(("data", "source"), ("data", "test"), ("private", "source"), ("private", "test")),
    *(("axes", "source"), ("model", "name")),
)


RunFile = str | Path | Mapping[str, Any]
"""The path of a run file, or its tables; paths in tables are relative to the working folder."""

Overrides = Sequence[str] | Mapping[str, Any]
"""Texts ``key=value``, or tables of the keys to override."""


def load(source: RunFile, overrides: Overrides = ()) -> tuple[Config, dict[str, Any]]:
    """The checked config of a run file, and its raw tables after the overrides, from which ``variants`` are made.

    An override is ``key=value`` with a value as TOML writes it; a bare word is a string. Setting ``training.steps``
    removes ``training.epochs`` and the other way round; another ``method.name`` or ``partition.scheme`` removes the
    settings that belonged to the old one. In ``data.source``, ``data.test``, ``axes.source`` and ``model.name``,
    ``$NAME`` is an environment variable, and a path that starts with ``./`` or ``../`` or exists beside the file is
    relative to the file's folder.

    Raises
    ------
    ConfigError
        with every problem of the file, its overrides and its [[compare]] entries.
    """
    raw, _, problems = _examined(source, overrides)
    if problems:
        raise ConfigError(problems)
    return parse(raw), raw


def examine(source: RunFile, overrides: Overrides = ()) -> tuple[list[str], list[tuple[str, Config]]]:
    """Every problem of a run file, and its variants by label, in which wrong keys are marked as ``spoilt``.

    The correct keys of a variant can so still be checked against the data and the model.

    Raises
    ------
    ConfigError
        if the file cannot be read.
    """
    _, entries, problems = _examined(source, overrides)
    return problems, [(label, repaired(variant)[0]) for label, variant in entries]


def base_of(source: RunFile, overrides: Overrides = ()) -> Config | None:
    """The config that the entries of [[compare]] change; None without entries or without [method] in the file."""
    raw = _examined(source, overrides)[0]
    return repaired(raw)[0] if raw.get("compare") and "method" in raw else None


def parse(raw: Mapping[str, Any]) -> Config:
    """The checked config of raw tables (a variant, or a run folder's ``config.json``).

    Raises
    ------
    ConfigError
        with every problem found.
    """
    config, problems = _judged(raw)
    if problems:
        raise ConfigError(problems)
    return config


def variants(raw: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The label and raw tables of each [[compare]] entry; without entries, those of the file itself.

    An entry's ``method`` table replaces the file's; of other tables, the keys that the entry names are replaced. An
    entry without ``label`` is labelled by its method.

    Raises
    ------
    ConfigError
        for an unknown key in an entry, and for a label that occurs twice.
    """
    entries, problems = entries_of(raw)
    if problems:
        raise ConfigError(problems)
    return entries


def resolved(config: Config) -> dict[str, Any]:
    """All keys of the config as JSON values, which ``parse`` reads back.

    The keys ``groups``, ``parties`` and ``server`` are left out where there are none. With them, the keys of a
    section that a group or the server takes over are left out of it.
    """
    keys = config.model_dump(mode="json", exclude={"groups", "server", "parties"})
    if config.server is not None:
        keys["server"] = as_written(config.server)
    if config.parties:
        keys["parties"] = [as_written(party) for party in config.parties]
    if config.groups:
        keys["groups"] = [as_written(group) for group in config.groups]
        for said in ("shares", "budgets", "ranks"):
            del keys["clients"][said]
    return keys


def digest(config: Config) -> str:
    """The sha256 of all keys that determine a run's result, which are those not in ``NOT_DETERMINING``."""
    keys = resolved(config)
    for name in NOT_DETERMINING:
        section, _, key = name.rpartition(".")
        (keys[section] if section else keys).pop(key)
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def _examined(
    source: RunFile, overrides: Overrides
) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]], list[str]]:
    """The raw tables after the overrides, the variants' raw tables by label, and every problem of both."""
    changes, problems = (deepcopy(dict(overrides)), []) if isinstance(overrides, Mapping) else changes_of(overrides)
    given, folder = (deepcopy(dict(source)), Path()) if isinstance(source, Mapping) else _of_file(Path(source))
    raw, lost = with_changes(given, changes)
    problems += [*lost, *_place(raw, folder), *_judged(raw)[1]]
    entries, found = entries_of(raw)
    problems += found
    said = set(problems)
    for label, variant in entries if raw.get("compare") else ():
        problems += [f"compare '{label}': {problem}" for problem in _judged(variant)[1] if problem not in said]
    return raw, entries, problems


def _of_file(path: Path) -> tuple[dict[str, Any], Path]:
    """The raw tables of a run file, with the file's name as default of ``name``, and the folder of the file."""
    return {"name": path.stem, **read_toml(path)}, path.parent


def _place(raw: dict[str, Any], folder: Path) -> list[str]:
    """Fill in environment variables and the file's folder, in place; returns the problems."""
    problems = []
    tables = [raw, *_entries(raw, "compare")]
    tables += [group for table in tables for group in _entries(table, "groups")]
    tables += [table["server"] for table in tables if isinstance(table, dict) and "server" in table]
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
    one = value.replace("{client}", "0").partition("@")[0]  # a source for each client, or a sheet of a file
    if value.startswith(("./", "../")) or os.path.exists(folder / one):  # False if no file can have the name
        return os.path.abspath(folder / value)
    return value


def _judged(raw: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The config of raw tables, and all problems of it."""
    config, problems = repaired(raw)
    others = (*cross_problems(config), *idle_problems(config), *group_problems(config), *server_problems(config))
    if not config.spoilt.touches("parties", "partition.scheme"):
        others = (*others, *party_problems(config))
    return config, [*problems, *others]
