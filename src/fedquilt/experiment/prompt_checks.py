"""Checks of prompts and completions for language models, and the evaluation of their answers."""

from __future__ import annotations

from fedquilt.client.generation import Answering
from fedquilt.client.texts import Language
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.tasks import TASKS, one_of, tasks_where
from fedquilt.data.bad_rows import Troubles
from fedquilt.data.readers.raw_columns import from_columns
from fedquilt.data.table import Table
from fedquilt.metrics.answers import program, says_something
from fedquilt.metrics.programs import run_programs
from fedquilt.models.loaded import Loaded

_FEW = 16  # number of programs that are run as a check


def check_posing(config: Config, table: Table, key: str, source: str) -> None:
    """Check that the rows fit the keys for language models.

    Raises
    ------
    ConfigError
        if such a key is set and the task is no language model's, or the rows have no completions to compare with.
    DataError
        if completions do not have the form that ``data.answers`` needs; names the rows.
    """
    data, task = config.data, config.model.task
    if not TASKS[task].writes:
        problems = [
            f"data.{name} = {getattr(data, name)!r}: is for language models, and model.task = '{task}' is not one; "
            f"leave it out, or set model.task to {one_of(tasks_where(lambda other: other.writes))}"
            for name in ("prompt", "words", "answers")
            if getattr(data, name) is not None
        ]
        if problems:
            raise ConfigError(problems)
        return
    asked = next((name for name in ("answers", "prompt", "words") if getattr(data, name) is not None), None)
    if asked is not None and table.targets is None:
        raise ConfigError(
            f"data.{asked} = {getattr(data, asked)!r}: the rows of data.{key} = '{source}' have no completions; name "
            "their column in data.target, or give data.prompt and in data.label the column of the class that it asks "
            f"for (columns: {', '.join(table.columns)})"
        )
    if data.answers is not None:
        _check_answers(data.answers, table, f"data.answers = '{data.answers}': data.{key} = '{source}'")


def answering_of(config: Config, loaded: Loaded, table: Table | None) -> Answering | None:
    """How the answers of a group's language model are evaluated; None if it is evaluated token by token.

    For ``data.answers = "label"`` the classes are those in the run file, or else the completions in the data. With the
    scheme ``sites`` only the run file can name them, as no party sees all completions.
    """
    data = config.data
    if data.answers is None or loaded.decode is None:
        return None
    classes = tuple((data.words or {}).values()) or data.classes or ()
    if data.answers == "label" and not classes and table is not None and config.partition.scheme != "sites":
        classes = tuple(sorted(set(table.targets or ())))
    return Answering(data.answers, loaded.decode, data.new_tokens, classes)


def language_of(loaded: Loaded, *, chat: bool = False) -> Language | None:
    """How a language model reads and writes texts, in a conversation with ``chat``; None for other models."""
    if loaded.decode is None:
        return None
    return Language(loaded.encode, loaded.decode, loaded.reading.vocabulary, chat)


def _check_answers(kind: str, table: Table, where: str) -> None:
    targets = table.targets or []
    origin = table.origin or from_columns({"input": targets}).origin
    troubles = Troubles(origin)
    for row, (prompt, target) in enumerate(zip(table.texts, targets, strict=True)):
        if not str(prompt).strip():
            troubles.add("an empty prompt, which no model can complete", row)
        if not says_something(kind, target):
            missing = {"number": "no number", "letter": "no letter from A to E"}.get(kind, "nothing")
            troubles.add(f"{missing} in its completion", row, target, show=True)
    troubles.refuse(where)
    if kind == "program":
        few = [program(target) for target in targets[:_FEW]]
        reasons = [ran.reason for ran in run_programs(few)]
        if few and all(reasons):
            first = origin.location(0)
            raise DataError(
                f"{where}: {first.file}, {first.unit} {first.number} is a program without a value ({reasons[0]}), and "
                f"so are all of the first {len(few)}; a program leaves a number in `answer` or prints it, and may "
                "import math alone"
            )
