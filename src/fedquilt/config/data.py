"""The section [data] of a run file: sources, formats, prompts and answers."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from fedquilt.config.strict import STRICT
from fedquilt.core.settings import Bound, Count, Text
from fedquilt.core.tasks import tasks_where

Span = tuple[Bound, Bound]
"""The lowest and the highest of some numbers."""


class Data(BaseModel):
    """Source and format of the examples. Leave out keys that do not apply to the source."""

    model_config = STRICT

    source: Text
    """``sklearn:digits`` (for tables also ``breast_cancer``, ``wine`` and ``iris``), ``arithmetic:blank`` (or
    ``choice``, ``program``, ``steps``), ``glyphs`` (drawings of letters), ``passages`` (of a novel, without labels),
    ``hub:owner/name``, or a file or folder of rows (csv, jsonl, either with .gz, parquet, npz, xlsx and others: what
    cannot be read is refused with a list of what can; ``rows.xlsx@NAME`` is one of several sheets), or such a folder
    in one file (zip, or tar also compressed). With the scheme ``sites``: one source a client with ``{client}`` for its
    number, or ``node``: what each node was started with."""
    test: Text | None = None
    """Source of the common test set for the global evaluation."""
    text: str = "text"
    """Column of the text, or of the prompt."""
    pair: str | None = None
    """Column of the second text; for a language model it is on the line below the first, or where ``prompt`` places it.
    """
    label: str = "label"
    """Column of the class."""
    classes: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    """The classes, in the order of the model's outputs; those found in the data if left out. If the base's own names
    (``id2label``) are the same classes, its order is kept. The scheme ``sites`` needs this key, since no single place
    sees all of the data."""
    target: str | None = None
    """Column of the completion, for causal language models."""
    format: Literal["auto", "plain", "instruction", "messages"] = "auto"
    """Format of text rows: ``plain`` columns as named here; ``instruction``, optionally ``input``, and ``output``; or
    ``messages``, a list of roles and contents. ``auto`` is plain if ``text`` is set or there is such a column, and
    otherwise follows from the columns."""
    prompt: Text | None = None
    """The prompt of each row for a causal language model, as ``"{text}\\nSentiment: "``: ``{text}`` and ``{pair}`` are
    the columns that these keys name, any other name in braces is a column's own. Without ``target``, the completion is
    the row's class."""
    words: dict[str, Text] | None = None
    """Completion for each class, as ``{0 = "negative", 1 = "positive"}``; the name of the class if left out."""
    answers: Literal["exact", "number", "letter", "program", "label"] | None = None
    """Generation-based accuracy of a language model: it completes the prompt, and ``accuracy`` is the share of rows
    whose answer matches the completion's: exact text, number, option letter, program value or class. If left out, the
    share of the completion's tokens that it predicts."""
    new_tokens: Count = 64
    """Largest number of tokens that a language model generates for an answer."""
    image: str = "image"
    """Column of the image."""
    columns: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Columns of numbers and categories that a model of tables reads; if left out, all but labels, client ids and
    columns that number the rows."""
    categorical: tuple[Text, ...] = ()
    """Columns that hold categories though they look like numbers, as codes do."""
    ranges: dict[str, Span] = {}
    """Lowest and highest ordinary value of columns of numbers, as ``{age = [0, 100]}``: mapped to -1 and 1. Other
    columns get mean 0 and variance 1 over all clients' training rows, which no client of the scheme ``sites`` can
    know: there every column must be in ``ranges`` or in ``categories``."""
    categories: dict[str, Annotated[tuple[Text, ...], Field(min_length=1)]] = {}
    """Categories of columns, as ``{sex = ["f", "m"]}``; any other value is one more. Those of other columns are found
    in all clients' training rows."""
    group: str | None = None
    """Column of the natural client id."""
    on_missing: Literal["error", "drop"] = "error"
    """Treatment of rows without a label, a text or a client id: ``error`` says how many there are and where, ``drop``
    leaves them out, and rows with an empty text too; the record says how many."""
    limit: Count | None = None
    """Number of rows of the source to use, drawn at random; all if left out."""
    test_limit: Count | None = None
    """Number of rows of the test set to use, drawn at random; all if left out."""
    proxy: Annotated[int, Field(ge=0)] = 0
    """Size of the proxy set: rows that only the server holds."""

    @field_validator("ranges")
    @classmethod
    def _are_ranges(cls, ranges: dict[str, Span]) -> dict[str, Span]:
        if odd := [name for name, (low, high) in ranges.items() if not low < high]:
            raise ValueError(f"the range of '{odd[0]}' must begin with the lower of two numbers: {[*ranges[odd[0]]]}")
        return ranges

    @model_validator(mode="after")
    def _declares_once(self) -> Data:
        if twice := [name for name in self.ranges if name in (*self.categories, *self.categorical)]:
            raise ValueError(
                f"ranges has '{twice[0]}', which is a column of categories too; a column has a range or categories"
            )
        declared = (*self.ranges, *self.categories, *self.categorical)
        if self.columns is not None and (unread := [name for name in declared if name not in self.columns]):
            raise ValueError(f"'{unread[0]}' is declared and not among columns; add it there, or leave it out")
        return self


_TEXT = tasks_where(lambda task: task.reads == "text")
_LANGUAGE = tasks_where(lambda task: task.writes)
_IMAGES = tasks_where(lambda task: task.reads == "image")
_TABLES = tasks_where(lambda task: task.reads == "table")
_CLASSIFIERS = tasks_where(lambda task: task.has_classes)
_FOR = {_TEXT: "models of text", _LANGUAGE: "language models", _IMAGES: "models of images", _TABLES: "models of tables"}
_TASKS: dict[str, tuple[str, ...]] = {
    "text": _TEXT,
    "pair": _TEXT,
    "target": _LANGUAGE,
    "format": _TEXT,
    "prompt": _LANGUAGE,
    "words": _LANGUAGE,
    "answers": _LANGUAGE,
    "image": _IMAGES,
    "columns": _TABLES,
    "categorical": _TABLES,
    "ranges": _TABLES,
    "categories": _TABLES,
}
"""The tasks that a key is for; other keys are for all tasks."""


def idle_keys(data: Data, tasks: Set[str], scheme: str) -> list[str]:
    """Problems with keys that are set and have no effect for the tasks of these clients and the partition scheme.

    A key with its default value counts as not set.
    """
    given = {key for key, field in Data.model_fields.items() if getattr(data, key) != field.default}
    others = ", ".join(f"'{task}'" for task in sorted(tasks))
    problems = [
        f"data.{key} = {getattr(data, key)!r}: is for {_FOR[own]}, and model.task = {others} is not one; leave it out"
        for key, own in _TASKS.items()
        if key in given and tasks.isdisjoint(own)
    ]
    made = all(source is None or source.startswith("arithmetic:") for source in (data.source, data.test))
    if made:
        problems += [
            f"data.{key} = {getattr(data, key)!r}: rows that are made have no columns to name; leave it out"
            for key in ("text", "pair", "label", "target", "group")
            if key in given
        ]
        if "on_missing" in given:
            problems.append("data.on_missing = 'drop': rows that are made lack nothing; leave it out")
    laid_out = data.format in ("instruction", "messages")
    unread = {
        "format": (
            laid_out and tasks.isdisjoint(_LANGUAGE),
            "says where completions are, and no language model is trained",
        ),
        "classes": (
            tasks.isdisjoint(_CLASSIFIERS) and (data.answers != "label" or data.words is not None),
            "of a language model's answers they matter only with answers = 'label' and without words",
        ),
        "words": (data.target is not None, "are written for classes, and data.target names the completions"),
        "new_tokens": (data.answers is None, "nothing is written without data.answers"),
        "group": (scheme != "natural", f"only partition.scheme = 'natural' asks for it, and here it is '{scheme}'"),
    }
    problems += [
        f"data.{key} = {getattr(data, key)!r}: {reason}; leave it out"
        for key, (idle, reason) in unread.items()
        if idle and key in given and not any(problem.startswith(f"data.{key} ") for problem in problems)
    ]
    return problems
