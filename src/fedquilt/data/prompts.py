"""Turning rows of a text source into prompts and completions for a language model.

The layouts of the columns:

    plain         columns of text: a prompt and optionally a completion
    instruction   columns ``instruction``, ``output`` and optionally ``input``
    messages      a list of ``role`` and ``content``; the last message, the assistant's, is the completion

In the last two, what precedes the completion is a conversation. It is formatted by the tokenizer's chat template, or by
``rendered`` if the tokenizer has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple

from fedquilt.core.errors import DataError, suggestion
from fedquilt.data.bad_rows import Troubles, short
from fedquilt.data.columns import fault_of_text, is_nothing
from fedquilt.data.readers.raw_columns import Raw

Turns = tuple[tuple[str, str], ...]
"""A conversation: pairs of role and content."""

NEEDED = {"plain": (), "instruction": ("instruction", "output"), "messages": ("messages",)}
"""The columns that each layout requires."""


class Conversations(NamedTuple):
    """The conversation before the completion, and the completion, of every row."""

    turns: list[Turns]
    completions: list[str]


def layout_of(raw: Raw, wanted: str, text: str, source: str) -> str:
    """The layout of a source: ``wanted``, or for ``auto`` the one that its column names suggest.

    ``auto`` gives ``plain`` if the user names the text column or there is a column ``text``.

    Raises
    ------
    DataError
        if a column of the wanted layout is missing.
    """
    if wanted == "auto":
        if text != "text" or {"text", "texts"} & set(raw.names):  # a column that the user named must exist
            return "plain"
        return next((name for name in ("messages", "instruction") if set(NEEDED[name]) <= set(raw.names)), "plain")
    missing = [name for name in NEEDED[wanted] if name not in raw.names]
    if missing:
        raise DataError(
            f"data.format = '{wanted}': '{source}' has no column {', '.join(map(repr, missing))}"
            f"{suggestion(missing[0], raw.names)}; columns: {', '.join(raw.names)}"
        )
    return wanted


def conversations(raw: Raw, layout: str, troubles: Troubles) -> Conversations:
    """The conversations of a source with the layout ``instruction`` or ``messages``.

    Rows that do not end with an answer of the assistant are noted in ``troubles``.
    """
    if layout == "messages":
        rows = [_messages(row, value, troubles) for row, value in enumerate(raw.read("messages"))]
        return Conversations([turns for turns, _ in rows], [completion for _, completion in rows])
    instructions = _texts(raw, "instruction", troubles)
    inputs = _texts(raw, "input", troubles, empty=True) if "input" in raw.names else [""] * raw.num_rows
    turns: list[Turns] = []
    for words in zip(instructions, inputs, strict=True):
        turns.append((("user", "\n\n".join(part for part in words if part.strip())),))
    return Conversations(turns, _texts(raw, "output", troubles))


def rendered(turns: Turns) -> str:
    """A conversation as plain text, for models without a chat template.

    Every turn is its role with a colon, a line break, its content and an empty line; the text ends with ``Assistant:``
    and a line break.
    """
    said = "".join(f"{role.capitalize()}:\n{content.strip()}\n\n" for role, content in turns)
    return f"{said}Assistant:\n"


def placeholders(prompt: str) -> tuple[str, ...]:
    """The names in braces of ``data.prompt``, each once.

    Raises
    ------
    DataError
        if a brace is not closed, braces hold more than a column's name, or there is no placeholder.
    """
    try:
        parts = list(Formatter().parse(prompt))
    except ValueError as error:
        raise DataError(f"data.prompt = {prompt!r}: {error}; write a literal brace twice") from error
    names = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name or form or conversion:
            raise DataError(
                f"data.prompt = {prompt!r}: braces must hold the name of a column and nothing else, as in "
                "'{text}'; write a literal brace twice"
            )
        names.append(name)
    if not names:
        raise DataError(
            f"data.prompt = {prompt!r}: holds no column, so all rows would be equal; insert a column as in '{{text}}'"
        )
    return tuple(dict.fromkeys(names))


def filled(prompt: str, raw: Raw, named: Mapping[str, str], source: str, troubles: Troubles) -> list[str]:
    """The prompt of every row, with its placeholders filled in.

    Parameters
    ----------
    prompt
        The prompt with column names in braces.
    raw
        The columns of the source.
    named
        The columns that placeholders such as ``{text}`` stand for, by placeholder; others stand for themselves.
    source
        The source as the user wrote it, for messages.
    troubles
        Receives the rows in which a placeholder's value is neither text nor a number.

    Raises
    ------
    DataError
        if a placeholder has no column, or the user named a column that the prompt does not use.
    """
    columns: dict[str, list[str]] = {}
    taken = set()
    for name in placeholders(prompt):
        column = named.get(name, name)
        column = next((same for same in (column, column + "s") if same in raw.names), "")
        if not column:
            known = [*(key for key, own in named.items() if own in raw.names), *raw.names]
            raise DataError(
                f"data.prompt = {prompt!r}: '{source}' has no column '{named.get(name, name)}' for {{{name}}}"
                f"{suggestion(name, known)}; columns: {', '.join(raw.names)}"
            )
        taken.add(column)
        columns[name] = [_word(value, name, row, troubles) for row, value in enumerate(raw.read(column))]
    for key, own in named.items():
        if own != key and own not in taken and own + "s" not in taken:
            raise DataError(
                f"data.{key} = '{own}': data.prompt = {prompt!r} does not use it; insert {{{key}}} into the "
                f"prompt, or leave data.{key} out"
            )
    parts = list(Formatter().parse(prompt))
    return [
        "".join(literal + ("" if name is None else columns[name][row]) for literal, name, _, _ in parts)
        for row in range(raw.num_rows)
    ]


def class_words(labels: Sequence[int], classes: Sequence[str], words: Mapping[str, str] | None) -> list[str]:
    """The completion for the class of every row: its word in ``words``, or its name if ``words`` is None.

    Raises
    ------
    DataError
        if ``words`` lacks a class.
    """
    lacking = [name for name in classes if words is not None and name not in words]
    if words is not None and lacking:
        raise DataError(
            f"data.words: has no word for the class '{lacking[0]}'{suggestion(lacking[0], list(words))}; give a word "
            f"for each of {', '.join(classes)}"
        )
    written = [name if words is None else words[name] for name in classes]
    return [written[label] for label in labels]


def _messages(row: int, value: Any, troubles: Troubles) -> tuple[Turns, str]:
    nothing = ((("user", ""),), "")
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        troubles.add("'messages': must be a list of role and content", row, value, show=True)
        return nothing
    said: list[tuple[str, str]] = []
    for turn in value:
        role, content = turn.get("role"), turn.get("content")
        if fault_of_text(role) or fault_of_text(content):
            troubles.add("'messages': a turn lacks a role or a content that is text", row, turn, show=True)
            return nothing
        said.append((role, content))
    if len(said) < 2 or said[-1][0] != "assistant":
        roles = ", ".join(short(role)[1:-1] for role, _ in said[:8]) or "none"
        troubles.add(
            f"'messages': the roles are {roles}; the last must be the assistant, whose message is the completion, "
            "after at least one other",
            row,
        )
        return nothing
    return tuple(said[:-1]), said[-1][1]


def _texts(raw: Raw, column: str, troubles: Troubles, *, empty: bool = False) -> list[str]:
    """The texts of a column; with ``empty`` a value may also be None."""
    made = []
    for row, value in enumerate(raw.read(column)):
        fault = None if empty and value is None else fault_of_text(value)
        if fault:
            troubles.add(f"column '{column}': {fault}", row, value, show=True, missing=is_nothing(value))
        elif troubles.drops and not empty and not value.strip():
            troubles.add(f"column '{column}': an empty text", row, missing=True)
        made.append("" if fault or value is None else str(value))
    return made


def _word(value: Any, name: str, row: int, troubles: Troubles) -> str:
    if value is None and name == "input":
        return ""
    if isinstance(value, str):
        fault = fault_of_text(value)
    else:
        number = isinstance(value, int | float) or hasattr(value, "item")
        fault = None if number and not isinstance(value, bool) else "neither text nor number"
    if fault:
        troubles.add(f"data.prompt: {{{name}}}: {fault}", row, value, show=True, missing=is_nothing(value))
        return ""
    if troubles.drops and name == "text" and not str(value).strip():
        troubles.add(f"data.prompt: {{{name}}}: an empty text", row, missing=True)
    try:
        return str(value)
    except ValueError:
        troubles.add(f"data.prompt: {{{name}}}: a number of too many digits", row)
        return ""
