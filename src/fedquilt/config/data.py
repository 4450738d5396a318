"""What a run file says on where the examples come from, and how a language model's rows are posed and judged."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fedquilt.config.value_types import STRICT, Count, Text
from fedquilt.core.tasks import tasks_where


class Data(BaseModel):
    """Where the examples come from. Keys that do not apply to the source are left out."""

    model_config = STRICT

    source: Text
    """``sklearn:digits``, ``arithmetic:blank`` (or ``choice``, ``program``), ``hub:owner/name``, or a file or folder
    of rows (csv, jsonl, parquet, npz and others: what cannot be read is refused with a list of what can). With the
    scheme ``sites``: one source a client with ``{client}`` for its number, or ``node``: what each node was started
    with."""
    test: Text | None = None
    """Source of a separate test set for the global evaluation."""
    text: str = "text"
    """Column of the text, or of the prompt."""
    pair: str | None = None
    """Column of the second text; a language model reads it on the line below the first, or where ``prompt`` says."""
    label: str = "label"
    """Column of the class."""
    classes: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    """The classes; those found in the data if left out. They are the model's outputs in this order, unless its own
    names (``id2label``) are these classes in another: then in its own. The scheme ``sites`` needs them: no single
    place sees all of the data."""
    target: str | None = None
    """Column of the completion, for causal language models."""
    format: Literal["auto", "plain", "instruction", "messages"] = "auto"
    """How rows of text are laid out: ``plain`` columns as named here; ``instruction``, perhaps ``input``, and
    ``output``; or ``messages``, a list of roles and contents. ``auto`` is plain where ``text`` is set or there is such
    a column, and else what the columns say."""
    prompt: Text | None = None
    """The prompt of each row for a causal language model, as ``"{text}\\nSentiment: "``: ``{text}`` and ``{pair}`` are
    the columns that these keys name, any other name in braces is a column's own. Without ``target``, the completion is
    the row's class."""
    words: dict[str, Text] | None = None
    """What is written for a class as the completion, as ``{0 = "negative", 1 = "positive"}``; its name if left out."""
    answers: Literal["exact", "number", "letter", "program", "label"] | None = None
    """How a language model is judged: it completes the prompt, and ``accuracy`` is the share of rows whose answer is
    that of the completion, by all of the text, its number, option letter, program's value or class. If left out, the
    share of the completion's tokens that it predicts."""
    new_tokens: Count = 64
    """Most tokens that a language model writes for an answer."""
    image: str = "image"
    """Column of the image."""
    group: str | None = None
    """Column of the natural client id."""
    limit: Count | None = None
    """Rows of the source that are used, drawn at random; all if left out."""
    test_limit: Count | None = None
    """Rows of the test set that are used, drawn at random; all if left out."""
    proxy: Annotated[int, Field(ge=0)] = 0
    """Rows that the server keeps as its own; no client gets them."""


_TEXT = tasks_where(lambda task: task.reads == "text")
_LANGUAGE = tasks_where(lambda task: task.writes)
_IMAGES = tasks_where(lambda task: task.reads == "image")
_CLASSIFIERS = tasks_where(lambda task: task.has_classes)
_FOR = {_TEXT: "models of text", _LANGUAGE: "language models", _IMAGES: "models of images"}
_TASKS: dict[str, tuple[str, ...]] = {
    "text": _TEXT,
    "pair": _TEXT,
    "target": _LANGUAGE,
    "format": _TEXT,
    "prompt": _LANGUAGE,
    "words": _LANGUAGE,
    "answers": _LANGUAGE,
    "image": _IMAGES,
}
"""The tasks that a key is for; those not here are for all."""


def idle_keys(data: Data, tasks: Set[str], scheme: str) -> list[str]:
    """What is wrong with keys that are set and would change nothing, by the tasks of who has this data and the scheme.

    A key that has its default counts as not set.
    """
    given = {key for key, field in Data.model_fields.items() if getattr(data, key) != field.default}
    told = ", ".join(f"'{task}'" for task in sorted(tasks))
    problems = [
        f"data.{key} = {getattr(data, key)!r}: is for {_FOR[own]}, and model.task = {told} is not one; leave it out"
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
