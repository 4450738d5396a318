"""A JSON schema (draft 2020-12) of the run file, with which an editor completes and checks it.

It covers keys, types, bounds, choices, and the settings of each method and scheme. ``fedquilt check`` also finds
problems that depend on several keys, the data or the model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from fedquilt.config.overrides import NOT_COMPARED
from fedquilt.config.schema import SECTIONS, Config
from fedquilt.config.sections import default_of, fields_of
from fedquilt.core.endpoint import Endpoint
from fedquilt.core.settings import Unless, With

Schema = dict[str, Any]
Factories = Mapping[str, Callable[..., Any]]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def json_schema(methods: Factories, schemes: Factories) -> Schema:
    """The schema of a run file, with the settings of these methods in [method] and of these schemes in [partition]."""
    made = _plain(Config.model_json_schema())
    tables, top = made["$defs"], made["properties"]
    for section in (*SECTIONS.values(), Endpoint):
        keys = tables[section.__name__]["properties"]
        for key, field in fields_of(section).items():
            keys[key]["description"] = _text(field.description or "")
    method, partition = tables["Method"], tables["Partition"]
    method_settings = {name: _settings(factory) for name, factory in methods.items()}
    scheme_settings = {name: _settings(factory) for name, factory in schemes.items()}
    every_setting = _merged(keys for keys, _ in scheme_settings.values())
    for name in SECTIONS:
        tables[f"some of {name}"] = _some(tables[SECTIONS[name].__name__])
    tables["some of partition"]["properties"] |= every_setting
    tables["some of partition"] |= {"additionalProperties": False}
    tables["Method"] = _chosen(method, "name", method_settings, default_of(SECTIONS["method"], "name"))
    tables["method of an entry"] = _chosen(method, "name", method_settings, None)
    tables["Partition"] = _chosen(partition, "scheme", scheme_settings, default_of(SECTIONS["partition"], "scheme"))
    group = tables["Group"]["properties"]
    for name in ("partition", "adapter", "head", "training"):
        group[name]["$ref"] = f"#/$defs/some of {name}"
    entry = {key: value for key, value in top.items() if key not in NOT_COMPARED}
    entry |= {name: {"$ref": f"#/$defs/some of {name}"} for name in SECTIONS}
    entry |= {"method": {"$ref": "#/$defs/method of an entry"}}
    label = {"type": "string", "minLength": 1, "description": "The entry's name in tables; that of its method else."}
    top["compare"]["items"] = {
        "type": "object",
        "properties": {"label": label, **entry},
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A run file of fedquilt",
        **_used(made),
    }


def _chosen(table: Schema, key: str, settings: Mapping[str, tuple[Schema, list[str]]], default: Any) -> Schema:
    """A table whose further keys depend on the value of ``key``, with one alternative for each value."""
    alternatives = []
    for name, (keys, needed) in settings.items():
        chosen = {**table["properties"][key], "const": name}
        alternatives.append(
            {
                "title": name,
                "type": "object",
                "properties": {**table["properties"], key: chosen, **keys},
                "required": needed if name == default else [key, *needed],
                "additionalProperties": False,
            }
        )
    return {"description": table.get("description", ""), "oneOf": alternatives}


def _settings(factory: Callable[..., Any]) -> tuple[Schema, list[str]]:
    """The schema of each keyword-only argument, and those without a default."""
    parameters = [
        one
        for one in inspect.signature(factory, eval_str=True).parameters.values()
        if one.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    meanings = _meanings(inspect.getdoc(factory) or "", [one.name for one in parameters])
    keys = {}
    for one in parameters:
        schema = _plain(_of_type(one.annotation))
        if one.default not in (one.empty, None):
            schema["default"] = list(one.default) if isinstance(one.default, tuple) else one.default
        goes_with = [about for about in getattr(one.annotation, "__metadata__", ()) if isinstance(about, With | Unless)]
        said = [meanings.get(one.name, ""), *(_condition(about) for about in goes_with)]
        keys[one.name] = schema | {"description": " ".join(text for text in said if text)}
    return keys, [one.name for one in parameters if one.default is one.empty]


def _of_type(annotation: Any) -> Schema:
    """The schema of a type; the schema of any value if pydantic has none for it."""
    if annotation is inspect.Parameter.empty:
        return {}
    try:
        return TypeAdapter(annotation, config=_STRICT).json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError):
        return {}


def _condition(about: With | Unless) -> str:
    if isinstance(about, Unless):
        return f"No effect with {about.key} = {about.value}."
    choices = " or ".join(str(value).lower() if isinstance(value, bool) else f"'{value}'" for value in about.values)
    return f"Only with {about.key} = {choices}."


def _meanings(docstring: str, names: list[str]) -> dict[str, str]:
    """The description of each argument in a docstring: its entry in a list of settings, or the sentences on it."""
    found: dict[str, str] = {}
    for heading, text in re.findall(r"(?m)^([^\n]+?) : (.+(?:\n[ \t]+\S.*)*)", docstring):
        for name in _named(heading, names):
            found[name] = _text(text)
    prose = _text(re.split(r"\n\S[^\n]*\n-{3,}\n", docstring)[0])
    sentences = re.split(r"(?<=[.;:])\s+", prose)
    for name in names:
        spoken = [sentence for sentence in sentences if re.search(rf"`{name}\b", sentence)]
        found.setdefault(name, " ".join(spoken))
    return found


def _named(heading: str, names: list[str]) -> Iterator[str]:
    """The arguments that an entry describes: ``a, b`` or ``a to b``."""
    first, _, last = heading.partition(" to ")
    if last and first in names and last in names:
        yield from names[names.index(first) : names.index(last) + 1]
    yield from (name for name in heading.split(", ") if name in names)


def _merged(tables: Iterable[Schema]) -> Schema:
    """The keys of several tables; a key with different schemas may match any of them."""
    kinds: dict[str, list[Schema]] = {}
    for keys in tables:
        for key, schema in keys.items():
            one = {name: value for name, value in schema.items() if name != "default"}
            if one not in kinds.setdefault(key, []):
                kinds[key].append(one)
    return {key: found[0] if len(found) == 1 else {"anyOf": found} for key, found in kinds.items()}


def _some(table: Schema) -> Schema:
    """The same table with all keys optional and without defaults."""
    keys = {
        name: {word: value for word, value in schema.items() if word != "default"}
        for name, schema in table["properties"].items()
    }
    return {**{word: value for word, value in table.items() if word != "required"}, "properties": keys}


def _plain(schema: Any) -> Any:
    """The schema without null (which TOML does not have), titles that repeat the key, and defaults of whole tables."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made: Schema = {}
    for word, value in schema.items():
        if word == "properties":
            made[word] = {key: _plain(inner) for key, inner in value.items()}
        elif word == "description":
            made[word] = _text(value)
        elif word != "title" and not (word == "default" and (value is None or isinstance(value, dict))):
            made[word] = _plain(value)
    kinds = [one for one in made.get("anyOf", ()) if one != {"type": "null"}]
    if len(kinds) == 1 and "anyOf" in made:
        del made["anyOf"]
        made = {**kinds[0], **made}
    elif kinds:
        made["anyOf"] = kinds
    return made


def _used(schema: Schema) -> Schema:
    """The schema without unused definitions."""
    text = str({key: value for key, value in schema.items() if key != "$defs"})
    wanted, seen = set(re.findall(r"#/\$defs/([^'\"]+)", text)), set[str]()
    while new := wanted - seen:
        seen |= new
        wanted |= {name for one in new for name in re.findall(r"#/\$defs/([^'\"]+)", str(schema["$defs"][one]))}
    return {**schema, "$defs": {name: value for name, value in schema["$defs"].items() if name in seen}}


def _text(docstring: str) -> str:
    return " ".join(docstring.replace("``", "`").split())
