"""Run files that nobody would write: ``python tests/config/run_file_fuzz.py COUNT [FIRST]`` checks so many of them.

A number is always the same file; FIRST is 0 if left out, and two processes share the work.

Each is a run file of this project with one to four mistakes in it: values of other types, sizes and depths, keys that
are misspelt, missing, doubled or in the wrong place, sections that are none, and text that is no TOML.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer

from fedquilt.cli.check import check
from fedquilt.config.schema import SECTIONS, Config, Group
from fedquilt.config.sections import fields_of
from fedquilt.core.errors import FedquiltError
from fedquilt.methods import METHODS

ROOT = Path(__file__).parents[2]
SLOWEST = 10.0
"""Seconds of processor time that a check may take: on a busy machine the clock says nothing of it."""

ODD = (
    *("0", "-1", "1", "2", "3.5", "-0.0", "nan", "inf", "-inf", "1e308", "1e-320", "true", "false", '""', "[]", "{}"),
    *(str(2**31), str(2**63), str(-(2**63) - 1), "1" + "0" * 30, "9" * 5000, "0x" + "f" * 8000, "1e400"),
    *("[" * 2000 + "]" * 2000, "[" * 12 + "1" + "]" * 12, "{a = " * 12 + "1" + "}" * 12, "[[[]]]", "[{}]", "[1, 'a']"),
    *(
        '"' + "x" * 100_000 + '"',
        '"ä日本🦔"',
        r'"\u0000"',
        r'"a\nb"',
        "'../../../etc/passwd'",
        '"/dev/zero"',
        '"$NOT_SET"',
    ),
    *(
        "1979-05-27",
        "07:32:00",
        "1979-05-27T07:32:00Z",
        "'node'",
        "'site-{client}.csv'",
        "'hub:no/where'",
        "'{'",
        "'%s'",
    ),
    *("[" + "1, " * 3000 + "]", "[" + "'a', " * 3000 + "]", "[0]", "[-1, 2]", "[1.5]", "[true]", "[3, 2, 1]", "'1-1'"),
    *("'tiny:vit'", "'tiny:llama?layers=0'", "'tiny:bert?width=999999999'", "'glyph-vit?layers=99'", "'package:os/x'"),
    *(
        "'causal-lm'",
        "'sequence-classification'",
        "'mixture'",
        "'full'",
        "'central'",
        "'local'",
        "'sites'",
        "'natural'",
    ),
    *("'0-1'", f"'{'9' * 400}-1'", f"'{'1-' * 2000}1'", "1_000_000", "100_000", "16_384", "1000", "1e12"),
    *(
        f"'{name}'"
        for name in (*METHODS, "flora", "yogi", "soft", "trimmed-mean", "sklearn:digits", "arithmetic:blank")
    ),
)
"""Values as TOML writes them."""

TEXTS = (
    'name = "{kind}"\n[model]\nname = "tiny:{kind}?layers=3"\ntask = "{task}"\n[data]\nsource = "{data}"\nlimit = 200\n'
    "[clients]\nbudgets = [1, 2, 3]\n[method]\nname = 'fedit'\n"
)


def run_files() -> list[str]:
    """The run files of this project: experiments, documents, tests, and one for each task; with data that is here."""
    found = [path.read_text("utf-8") for path in sorted((ROOT / "experiments").rglob("*.toml"))]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        found += re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.S)
    for test in (ROOT / "tests" / "conftest.py", *sorted((ROOT / "tests" / "experiment").glob("*.py"))):
        found += [text for text in re.findall(r'"""\\?\n(.*?)"""', test.read_text("utf-8"), re.S) if "[model]" in text]
    found += [
        TEXTS.format(kind=kind, task=task, data=data)
        for kind, task, data in (
            ("vit", "image-classification", "sklearn:digits"),
            ("llama", "causal-lm", "arithmetic:blank"),
        )
    ]
    here = [text.replace("$FEDQUILT_DATA/mnist/mnist.npz", "sklearn:digits") for text in found]
    here = [re.sub(r"(?m)^test_limit = .*\n", "", text) for text in here]
    return [text for text in here if _is_toml(text)]


def mutated(text: str, rng: random.Random) -> str:
    """The run file with one to four mistakes; of a comparison, whose entries are checked alike, the first three."""
    tables = tomllib.loads(text)
    if isinstance(entries := tables.get("compare"), list):
        del entries[3:]
    for _ in range(rng.randint(1, 4)):
        rng.choice(_MISTAKES)(tables, rng)
    made = written(tables)
    if rng.random() < 0.1:
        place = rng.randrange(len(made) + 1)
        made = (
            made[:place] + rng.choice(("", "[", "]", '"', "'''", "=", ".", "\x00", "é", "#", "\n")) + made[place + 1 :]
        )
    return made


class Raw(str):
    """A value as TOML writes it."""


def _odd_value(tables: dict[str, Any], rng: random.Random) -> None:
    table = rng.choice(list(_tables(tables)))
    if table:
        table[rng.choice(list(table))] = Raw(rng.choice(ODD))


def _odd_known(tables: dict[str, Any], rng: random.Random) -> None:
    """A key that there is, with a value that may be none of it."""
    name = rng.choice(list(SECTIONS))
    table = tables.setdefault(name, {})
    keys = {**fields_of(SECTIONS[name])}
    if name == "method":
        keys |= dict.fromkeys(METHODS[rng.choice(list(METHODS))].__kwdefaults__ or {})
    if isinstance(table, dict):
        table[rng.choice(list(keys))] = Raw(rng.choice(ODD))


def _top(tables: dict[str, Any], rng: random.Random) -> None:
    tables[rng.choice(list(Config.model_fields))] = Raw(rng.choice(ODD))


def _grouped(tables: dict[str, Any], rng: random.Random) -> None:
    groups = tables.setdefault("groups", [])
    if not isinstance(groups, list):
        return
    group: dict[str, Any] = {"label": f"g{len(groups)}", "budget": rng.randint(1, 3)}
    for key in rng.sample(list(Group.model_fields), 2):
        group[key] = {rng.choice(list(fields_of(SECTIONS[key]))): Raw(rng.choice(ODD))} if key in SECTIONS else Raw("2")
    groups.append(group)
    if isinstance(tables.get("clients"), dict):
        tables["clients"] = {key: value for key, value in tables["clients"].items() if key == "cohort"}


def _compared(tables: dict[str, Any], rng: random.Random) -> None:
    entries = tables.setdefault("compare", [])
    if isinstance(entries, list) and len(entries) < 3:
        name = rng.choice(list(METHODS))
        entries.append({"label": f"l{len(entries)}", "method": {"name": name}, rng.choice(list(SECTIONS)): {}})


def _gone(tables: dict[str, Any], rng: random.Random) -> None:
    table = rng.choice(list(_tables(tables)))
    if table:
        del table[rng.choice(list(table))]


def _misspelt(tables: dict[str, Any], rng: random.Random) -> None:
    table = rng.choice(list(_tables(tables)))
    if table:
        key = rng.choice(list(table))
        place = rng.randrange(len(key) + 1)
        table[key[:place] + rng.choice("xyzé. _-0") + key[place + rng.randint(0, 1) :]] = table.pop(key)


def _moved(tables: dict[str, Any], rng: random.Random) -> None:
    source, target = (rng.choice(list(_tables(tables))) for _ in range(2))
    if source:
        key = rng.choice(list(source))
        value = source[key]
        if not isinstance(value, dict | list):
            target[key] = value


def _many(tables: dict[str, Any], rng: random.Random) -> None:
    table = rng.choice(list(_tables(tables)))
    for number in range(rng.choice((3, 300))):
        table[f"key{number}"] = number


def _deep(tables: dict[str, Any], rng: random.Random) -> None:
    depth = rng.choice((5, 14, 100, 3000))
    tables[rng.choice(list(Config.model_fields))] = Raw("{" + "a = {" * depth + "}" * depth + "}")


_MISTAKES = (
    *(_odd_value, _odd_value, _odd_value, _odd_known, _odd_known, _odd_known, _top, _grouped, _compared),
    *(_gone, _gone, _misspelt, _moved, _many, _deep),
)


def _tables(tables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tables
    for value in tables.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from _tables(inner)


def written(tables: dict[str, Any]) -> str:
    """The tables as TOML."""
    plain = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        if isinstance(value, dict):
            lines += [f"[{_key(key)}]", *(f"{_key(inner)} = {_value(one)}" for inner, one in value.items())]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _value(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        signs = (f"\\u{ord(sign):04x}" if sign in '"\\' or ord(sign) < 32 else sign for sign in value)
        return '"' + "".join(signs) + '"'
    return str(value)


def _is_toml(text: str) -> bool:
    try:
        return "model" in tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False


class End(NamedTuple):
    """How ``fedquilt check`` ended on the run file of a number: ``ok``, ``refused`` or a traceback, and after how much
    processor time."""

    number: int
    found: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.found not in ("ok", "refused") or self.seconds > SLOWEST


def ended(path: Path, number: int) -> End:
    """How ``check`` ends on a file."""
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            check(path, [], None, False)
        found = "ok"
    except (FedquiltError, typer.Exit) as error:
        found = "refused" if str(error) else "refused without a word"
    except Exception:
        found = traceback.format_exc()
    return End(number, found, time.process_time() - began)


def fuzzed(folder: Path, numbers: Iterable[int]) -> list[End]:
    """How the run files of these numbers ended; those that failed stay in the folder."""
    texts, ends = run_files(), []
    path = folder / f"mutated-{os.getpid()}.toml"
    for number in numbers:
        path.write_text(mutated(texts[number % len(texts)], random.Random(number)), "utf-8")
        ends.append(ended(path, number))
        if ends[-1].failed:
            (folder / f"failed-{number}.toml").write_text(path.read_text("utf-8"), "utf-8")
    return ends


def by_processes(folder: Path, numbers: range, num_processes: int = 2, size: int = 25) -> Iterator[list[End]]:
    """The same in processes of their own, ``size`` at a time, as they come."""
    one_thread = partial(torch.set_num_threads, 1)
    with ProcessPoolExecutor(num_processes, get_context("spawn"), initializer=one_thread) as pool:
        parts = [numbers[at : at + size] for at in range(0, len(numbers), size)]
        yield from pool.map(partial(fuzzed, folder), parts)


def main(count: int, first: int = 0) -> int:
    """Check so many run files from this number on, and print the figures; the number of those that failed."""
    folder, began, ends = Path(tempfile.mkdtemp(prefix="fuzz-")), time.perf_counter(), list[End]()
    for part in by_processes(folder, range(first, first + count)):
        ends += part
        for end in part:
            if end.failed:
                print(f"--- {end.number}, {end.seconds:.1f} s, {folder}/failed-{end.number}.toml\n{end.found}")
    found, slowest = Counter(end.found for end in ends), max(ends, key=lambda end: end.seconds)
    wrong = [end for end in ends if end.failed]
    print(
        f"{len(ends)} files ({first} to {first + count - 1}): {found['ok']} ok, {found['refused']} refused, "
        f"{len(ends) - found['ok'] - found['refused']} tracebacks, {len(wrong)} failed or above {SLOWEST:g} s; slowest "
        f"{slowest.seconds:.1f} s ({slowest.number}); {time.perf_counter() - began:.0f} s in all. Go on with: "
        f"python tests/config/run_file_fuzz.py {count} {first + count}"
    )
    return len(wrong)


if __name__ == "__main__":
    sys.exit(min(1, main(*map(int, sys.argv[1:3]))))
