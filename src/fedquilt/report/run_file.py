"""The run file of a run, written anew from its resolved config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


def run_file(config: Mapping[str, Any]) -> str:
    """Return a config as TOML; keys without a value are left out, which means the same."""
    return "\n".join(_lines(config, ())).strip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """The lines of a table: its own keys, then the tables in it."""
    there = {key: value for key, value in table.items() if value is not None}
    inner = {key: value for key, value in there.items() if _is_table(value) or _is_tables(value)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in there.items() if key not in inner]
    for key, value in inner.items():
        name = ".".join(map(_key, (*path, key)))
        for one in value if _is_tables(value) else [value]:
            lines += ["", f"[[{name}]]" if _is_tables(value) else f"[{name}]", *_lines(one, (*path, key))]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _is_tables(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and all(map(_is_table, value))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_value(one)}' for key, one in value.items() if one is not None)}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(_value(one) for one in value if one is not None)}]"
    return json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")
