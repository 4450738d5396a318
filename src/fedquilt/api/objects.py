"""Models, tokenizers and rows given as Python objects: a config holds names in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, RunError

Objects = dict[str, Any]
"""``Config.objects``: models and rows by their names in the config."""

_OF_A_SECTION = {"classes", "columns", "categorical", "ranges", "categories"}
"""Keys of [data] that hold lists or tables: a dictionary with only these is the section, not a table of rows."""


def taken_out(sections: Mapping[str, Any], found: Objects) -> dict[str, Any]:
    """The sections with a name in place of each object; the objects are added to ``found``.

    A model may be given for the section ``model`` or its key ``name``, with a ``tokenizer`` beside it; rows for the
    section ``data``, and ``private`` of ``server``, or its keys ``source`` and ``test``. A dictionary is a table of
    rows if all its values are arrays or lists, or tables of rows themselves, and it has no key ``source``. Groups,
    entries of a comparison and ``server`` may hold objects too.
    """
    made = dict(sections)
    for key in ("groups", "compare"):
        if isinstance(made.get(key), list | tuple):
            entries = made[key]
            made[key] = [taken_out(entry, found) if isinstance(entry, Mapping) else entry for entry in entries]
    if isinstance(made.get("server"), Mapping):
        made["server"] = taken_out(made["server"], found)
    tokenizer = made.pop("tokenizer", None)
    if "model" in made or tokenizer is not None:
        made["model"] = _model(made.get("model", {}), tokenizer, found)
    for key in ("data", "private"):
        if key in made:
            made[key] = _data(made[key], found)
    return made


def objects_of(model: Any = None, tokenizer: Any = None, data: Any = None) -> Objects:
    """The objects of a run that is opened again, by name; a list holds several models or tables of rows."""
    found: Objects = {}
    for one in model if isinstance(model, list) else [model]:
        if one is not None:
            _model(one, tokenizer, found)
    for rows in data if isinstance(data, list) else [data]:
        if rows is not None:
            _named_rows(rows, found)
    return found


def refuse_missing(config: Config, objects: Mapping[str, Any], folder: Any, of: str = "") -> None:
    """Raise RunError if objects that a run began with are not given; ``of`` restricts the check to models or data."""
    from fedquilt.core.types import IN_MEMORY

    models = {config.model.name, *(group.model.name for group in config.groups if group.model is not None)}
    parts = [config.data, *(group.data for group in config.groups if group.data is not None)]
    if config.server is not None:
        models |= set() if config.server.model is None else {config.server.model.name}
        parts += [own for own in (config.server.data, config.server.private) if own is not None]
    rows = {source for data in parts for source in (data.source, data.test) if source is not None}
    lacking = {
        what: sorted(name for name in names if name.startswith(IN_MEMORY) and name not in objects)
        for what, names in (("model", models), ("data", rows))
        if of in ("", what)
    }
    missing = ", ".join(f"{what} '{name}'" for what, names in lacking.items() for name in names)
    if missing:
        given = ", ".join(f"'{name}'" for name in objects) or "nothing"
        call = ", ".join(f"{what}=..." for what, names in lacking.items() if names)
        raise RunError(
            f"{folder}: began with objects in memory: {missing}; given here: {given}. The names hold a digest: give "
            f"the same objects, unchanged: fedquilt.open_run(folder, {call})"
        )


def inputs_of(rows: Any) -> tuple[list[str], Objects]:
    """The sources of rows that are to be predicted, and the objects that they name.

    ``rows`` is a path, a table, or a dictionary of these by the labels of parties.
    """
    from fedquilt.data.readers.in_memory import is_rows

    found: Objects = {}

    def source(one: Any) -> str:
        return str(one) if _is_path(one) else _named_rows(one, found)

    if isinstance(rows, Mapping) and rows and all(_is_path(one) or is_rows(one) for one in rows.values()):
        return [f"{label}={source(one)}" for label, one in rows.items()], found
    return [source(rows)], found


def _model(given: Any, tokenizer: Any, found: Objects) -> Any:
    if isinstance(given, Mapping):
        table = dict(given)
        tokenizer = table.pop("tokenizer", tokenizer)
        if "name" in table and not isinstance(table["name"], str):
            return {**table, **_model(table["name"], tokenizer, found)}
        _refuse_alone(tokenizer)
        return table
    if isinstance(given, str):
        _refuse_alone(tokenizer)
        return given
    from torch import nn

    from fedquilt.models.own import OwnModel, own_model

    if not isinstance(given, nn.Module | OwnModel):
        raise ConfigError(
            f"model = {given!r:.100}: must be a name, a table of [model], an nn.Module or a fedquilt.OwnModel"
        )
    own = own_model(given, tokenizer)
    found[own.name] = own
    return {"name": own.name}


def _refuse_alone(tokenizer: Any) -> None:
    if tokenizer is not None:
        raise ConfigError("tokenizer: goes with a model in memory only; a model by name has its own; leave it out")


def _data(given: Any, found: Objects) -> Any:
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping) and ("source" in given or "test" in given or not _are_rows(given)):
        held = {key: value for key in ("source", "test") if (value := given.get(key)) is not None}
        named = {key: _named_rows(value, found) for key, value in held.items() if not _is_path(value)}
        return {**given, **named}
    return given if _is_path(given) else {"source": _named_rows(given, found)}


def _are_rows(given: Mapping[str, Any]) -> bool:
    from fedquilt.data.readers.in_memory import is_rows

    split = bool(given) and all(map(is_rows, given.values()))
    return (split or is_rows(given)) and not set(given) <= _OF_A_SECTION


def _is_path(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "__fspath__")


def _named_rows(rows: Any, found: Objects) -> str:
    from fedquilt.core.types import IN_MEMORY
    from fedquilt.data.readers.in_memory import digest, splits_in_memory

    splits = splits_in_memory(rows)
    name = f"{IN_MEMORY}rows-{digest(splits)[:16]}"
    found[name] = splits
    return name
