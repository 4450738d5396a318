"""Reading TOML with limits on size and depth, which are checked before the content is used."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import date, time
from pathlib import Path
from typing import Any, NamedTuple

from fedquilt.core.errors import ConfigError
from fedquilt.core.shell import command

_DATA = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx")
MOST_BYTES = 2**20
MOST_VALUES = 50_000
MOST_LEVELS = 16
"""Largest depth of nested tables and lists; keys of a run file need at most 6."""
MOST_KEY_SIGNS = 200
_INT64 = 2**63

# Texts and comments may hold brackets and dots without nesting. Each alternative also matches an unclosed text, so that
# the file is scanned once.
_TEXTS = re.compile(
    r'"""(?:\\.|(?!""")[^\\])*+(?:"{3})?|'
    r"'''(?:(?!''').)*+(?:'{3})?|"
    r'"(?:\\[^\n]|[^"\\\n])*+"?|'
    r"'[^'\n]*+'?|"
    r"#[^\n]*+",
    re.DOTALL,
)
_DEEP_KEY = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MOST_LEVELS}}}")


Key = tuple[str | int, ...]
"""The path of a value: ``("groups", 0, "model", "name")``."""

WRONG: list[Any] = [[[]]]
"""A replacement for rejected values, with a type that no key accepts."""


class Taken(NamedTuple):
    """Tables with ``WRONG`` in place of every value that no key can have, the keys of these, and the reasons."""

    tables: dict[str, Any]
    refused: tuple[Key, ...]
    problems: tuple[str, ...]


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises
    ------
    ConfigError
        if it cannot be read, is not TOML, or is larger or deeper than any run file.
    """
    if (path / "config.json").exists():
        raise ConfigError(
            f"{path}: is the folder of a run, not a run file; if the run was interrupted, continue it with "
            f"{command('run', '--resume', path)}"
        )
    if path.suffix in _DATA:
        raise ConfigError(
            f"{path}: is data, not a run file; write a run file for it with {command('init', path)}, and give that"
        )
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path}: is larger than {MOST_BYTES:,} bytes, the most that a run file may have")
        return parsed_toml(content.decode("utf-8").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; the folder searched is {path.parent.resolve()}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from error
    except ValueError as error:  # tomllib's own, or of a path with a null byte
        raise ConfigError(
            f"{path}: not valid TOML: {error}; text stands in quotes, tables start with [name]"
        ) from error


def parsed_toml(text: str) -> dict[str, Any]:
    """The tables of a text, with integers of any size; see ``within_limits``.

    Raises
    ------
    ValueError
        if it is not TOML, or nests deeper than ``MOST_LEVELS``.
    """
    bare = _TEXTS.sub("_", text)
    if _DEEP_KEY.search(bare) or _levels(bare) > MOST_LEVELS:
        raise ValueError(f"tables or lists nest deeper than {MOST_LEVELS} levels, and no key of a run file does")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # Python's, of an integer of thousands of digits
        raise ValueError("a whole number has thousands of digits, and those of TOML have 64 bits") from error


def _levels(bare: str) -> int:
    """The largest number of brackets that are open at once."""
    now = most = 0
    for sign in re.findall(r"[\[\]{}]", bare):
        now = now + 1 if sign in "[{" else max(0, now - 1)
        most = max(most, now)
    return most


def within_limits(tables: Mapping[str, Any]) -> Taken:
    """The tables without values outside TOML's own bounds or of a type that no key has.

    Raises
    ------
    ConfigError
        if there are more values than ``MOST_VALUES``.
    """
    refused: dict[Key, str] = {}
    left = MOST_VALUES

    def taken(value: Any, key: Key) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ConfigError(f"more than {MOST_VALUES:,} values stand in the file, the most that a run file may have")
        if isinstance(value, Mapping):
            for name in value:
                if why := _odd_key(name):
                    refused[(*key, repr(name)[1:60] + "...")] = why
            return {name: taken(inner, (*key, name)) for name, inner in value.items() if not _odd_key(name)}
        if isinstance(value, list | tuple):
            return [taken(inner, (*key, index)) for index, inner in enumerate(value)]
        if why := _odd_value(value):
            refused[key] = why
            return WRONG
        return value

    made = taken(tables, ())
    return Taken(made, tuple(refused), tuple(f"{as_written(key)}: {why}" for key, why in refused.items()))


def as_written(key: Key) -> str:
    """The key as messages write it: ``groups[0].model.name``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _odd_key(name: Any) -> str:
    """Why this cannot be a key, or an empty text."""
    if not isinstance(name, str) or not is_unicode(name):
        return "is no text that a key can be"
    if len(name) > MOST_KEY_SIGNS:
        return f"is a key of {len(name):,} characters; none has above {MOST_KEY_SIGNS}"
    return ""


def _odd_value(value: Any) -> str:
    """Why no key can have this value, or an empty text."""
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return f"is a whole number of {value.bit_length():,} bits; those of TOML have 64"
    if isinstance(value, str) and not is_unicode(value):
        return "holds bytes that are not UTF-8 text"
    if isinstance(value, date | time):
        return f"{value} is a date or a time, and no key has one; if it is text, put it in quotes"
    if value is None or isinstance(value, int | float | str):
        return ""
    return f"is of the type {type(value).__name__}; a value is text, a number, true or false, a list or a table"


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded as UTF-8; arguments of a command line may hold other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
