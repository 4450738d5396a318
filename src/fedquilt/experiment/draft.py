"""A commented run file for data that somebody brings along."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import fedquilt
from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.core.tasks import TASKS, one_of
from fedquilt.data.columns import measurements
from fedquilt.data.loaders import part_of
from fedquilt.data.look import Look, look

MODELS: Mapping[str, tuple[str, str]] = {
    "image": (
        "glyph-vit",
        "trained on drawings of letters; for photographs take one such as google/vit-base-patch16-224",
    ),
    "text": (
        "tiny:bert?layers=2&width=64",
        "random weights, to try the file with; for results take one such as distilbert-base-uncased",
    ),
    "table": ("mlp?layers=3&width=32", "a small network that starts from random weights"),
    "completion": (
        "tiny:llama",
        "random weights, to try the file with; for results take one such as Qwen/Qwen2.5-0.5B",
    ),
}
"""The model that is proposed for what a task reads or writes, and a remark on it."""

_FROM_NOTHING = ("tiny:", "mlp")  # models of random weights, which need longer steps
_CLIENTS = 10
_ROWS = 20  # of a client, of clients that are made


@dataclass(frozen=True)
class Wanted:
    """What is known before the look at the data; None for what is to be guessed, and "" for a column that is not."""

    task: str | None = None
    label: str | None = None
    text: str | None = None
    site: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Draft:
    """A run file, and remarks on the rows that it uses."""

    text: str
    task: str
    seen: Look


def draft(source: str, wanted: Wanted, folder: Path = Path()) -> Draft:
    """Look at a source and write a run file for it, whose paths are relative to ``folder``.

    Raises
    ------
    FedquiltError
        ConfigError if there is no such task, or the data has too few rows or classes; DataError if it cannot be read or
        lacks a column.
    """
    if wanted.task is not None and wanted.task not in TASKS:
        raise ConfigError(
            f"--task '{wanted.task}': unknown task{suggestion(wanted.task, [*TASKS])}; allowed: {one_of([*TASKS])}"
        )
    seen = look(source, label=wanted.label, text=wanted.text, site=wanted.site)
    task = wanted.task or task_of(seen)
    if TASKS[task].has_classes and len(seen.classes) < 2:
        found = f"'{seen.label}' has {len(seen.classes)} class" if seen.label else "no column looks like classes"
        raise ConfigError(f"--label: {found}; name the column of the class; columns: {', '.join(seen.columns)}")
    if TASKS[task].has_classes and (measured := measurements(seen.classes, seen.num_rows)):
        raise ConfigError(f"--label '{seen.label}': {measured}")
    if TASKS[task].reads == "text" and seen.text is None and seen.completion is None:
        raise ConfigError(f"--text: no column looks like text; name it; columns: {', '.join(seen.columns)}")
    parts = [_head(source, seen), _model(task, wanted.model), _data(_located(source, folder), task, seen)]
    return Draft("\n".join([*parts, _partition(seen), _training(task, wanted.model), _REST]), task, seen)


def task_of(seen: Look) -> str:
    """The task that the columns suggest."""
    if seen.image:
        reads, labels = "image", "class"
    elif seen.text and (seen.label or not seen.completion):
        reads, labels = "text", "class"
    elif seen.text or seen.completion:
        reads, labels = "text", "completion"
    else:
        reads, labels = "table", "class"
    return next(name for name, task in TASKS.items() if (task.reads, task.labels) == (reads, labels))


def _located(source: str, folder: Path) -> str:
    """The source as a run file in ``folder`` names it."""
    path = Path(part_of(source)[0])
    if path.is_absolute() or not path.exists():
        return source
    relative = Path(os.path.relpath(source, str(folder))).as_posix()
    return relative if relative.startswith("../") else f"./{relative}"


def _head(source: str, seen: Look) -> str:
    said = "".join(f"#   - {remark}\n" for remark in seen.remarks())
    return (
        f"# Made from {json.dumps(source, ensure_ascii=False)}: {seen.num_rows} rows with the columns "
        f"{json.dumps([*seen.columns], ensure_ascii=False)}.\n{said}"
        "# All keys: docs/run-file.md. Next: fedquilt check FILE, then fedquilt run FILE\n"
        "seed = 1\nrounds = 10\n"
    )


def _model(task: str, name: str | None) -> str:
    about = TASKS[task]
    usual, remark = MODELS["completion" if about.writes else about.reads]
    comment = "" if name else f"   # {remark}"
    length = "max_length = 128   # tokens of a text; longer ones are cut\n" if about.reads == "text" else ""
    return f"[model]\nname = {_quoted(name or usual)}{comment}\ntask = {_quoted(task)}\n{length}"


def _data(source: str, task: str, seen: Look) -> str:
    about, lines = TASKS[task], [f"[data]\nsource = {_quoted(source)}"]
    if about.reads == "image" and seen.image not in (None, "image", "images"):
        lines.append(f"image = {_quoted(str(seen.image))}")
    if about.reads == "text" and seen.text not in (None, "text", "texts"):
        lines.append(f"text = {_quoted(str(seen.text))}")
    if about.has_classes and seen.label not in (None, "label", "labels"):
        lines.append(f"label = {_quoted(str(seen.label))}")
    if about.has_classes:
        counts = ", ".join(f"{name}: {count}" for name, count in list(seen.classes.items())[:10])
        lines.append(f"# {len(seen.classes)} classes, with rows: {_one_line(counts)}")
    plain = seen.text is not None and seen.completion not in (None, "messages")
    if about.writes and plain and seen.text not in ("instruction", "instructions"):
        lines.append(f"target = {_quoted(str(seen.completion))}   # the completion that is learned")
    if about.reads == "table" and seen.ids:
        kept = [name for name in seen.columns if name not in (*seen.ids, seen.label, seen.site, "is_train")]
        lines.append(f"columns = {json.dumps(kept, ensure_ascii=False)}   # without those that only tell rows apart")
    if seen.site:
        lines.append(f"group = {_quoted(seen.site)}   # whose rows they are")
    if seen.no_label or seen.no_text or seen.no_site:
        lines.append('on_missing = "drop"   # leaves out rows without a label, a text or a client')
    return "\n".join(lines) + "\n"


def _partition(seen: Look) -> str:
    if seen.site:
        names = _one_line(", ".join(f"{name}: {count} rows" for name, count in list(seen.sites.items())[:10]))
        count, made = len(seen.sites), f'scheme = "natural"   # a client for each {_one_line(seen.site)}: {names}'
    else:
        count = max(2, min(_CLIENTS, seen.num_rows // _ROWS))
        made = 'scheme = "iid"   # a client column would be named by data.group, with scheme = "natural"'
    return (
        f"[partition]\n{made}\nnum_clients = {count}\ntest_fraction = 0.2   # of each client's rows, to evaluate on\n\n"
        '[clients]\n# If half of the clients can train less: shares = "1-1" and budgets = ["50%", "100%"].\n'
        'shares = "1"\nbudgets = ["100%"]   # of the model\'s blocks that a client can train\n'
    )


def _training(task: str, name: str | None) -> str:
    about = TASKS[task]
    model = name or MODELS["completion" if about.writes else about.reads][0]
    steps, rate = (30, 0.01) if model.startswith(_FROM_NOTHING) else (10, 0.003)
    return f"[training]\nsteps = {steps}   # of a client in a round\nbatch_size = 16\nlearning_rate = {rate}\n"


_REST = (resources.files(fedquilt) / "assets" / "draft-end.toml").read_text("utf-8")
"""What every draft ends with: the adapter, and methods to compare."""


def _quoted(text: str) -> str:
    """The text as TOML writes it: the escapes of JSON are among TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    """The text without characters that end a comment or that none may have."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
