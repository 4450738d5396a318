"""From the columns of a source to a table of images, of text or of cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedquilt.core.errors import DataError, suggestion
from fedquilt.core.tasks import one_of, tasks_where
from fedquilt.data.bad_rows import OnMissing, Troubles
from fedquilt.data.cells import Wanted, read_cells
from fedquilt.data.columns import classes, column, found, groups, published, strings
from fedquilt.data.prompts import class_words, conversations, filled, layout_of, rendered
from fedquilt.data.readers.images import decoded
from fedquilt.data.readers.raw_columns import Raw
from fedquilt.data.table import Inputs, Table


def table_of(
    raw: Raw,
    source: str,
    names: Mapping[str, str | None],
    format: str,
    prompt: str | None,
    words: Mapping[str, str] | None,
    on_missing: OnMissing = "error",
) -> Table:
    """The rows of a source as images or as text; the arguments are those of ``loaders.load_table``.

    Parameters
    ----------
    raw, source
        The columns of the source, and its name for messages.
    names
        The names of columns by the key that gives them.
    format, prompt, words
        How rows are posed to a language model.
    on_missing
        What happens to rows that lack a text, a label or a client id.

    Raises
    ------
    DataError
        if the source lacks a column, or some of its rows cannot be used.
    """
    text, image, pair, target = str(names["text"]), str(names["image"]), names["pair"], names["target"]
    layout = "plain" if format == "auto" and found(raw, image) else layout_of(raw, format, text, source)
    if pair is not None and prompt is None and layout != "plain":
        raise DataError(
            f"data.pair = '{pair}': the columns of the format '{layout}' have no second text; leave data.pair out, or "
            "write all of the prompt in data.prompt"
        )
    if text != "text" and prompt is None and layout != "plain":
        raise DataError(
            f"data.text = '{text}': the columns of data.format = '{layout}' have names of their own; leave data.text "
            "out"
        )
    posed = prompt is not None or layout != "plain"
    has_text, has_image = posed or found(raw, text) is not None, found(raw, image) is not None
    if not has_text and not has_image:
        hint = suggestion(text, raw.names) or suggestion(image, raw.names)
        raise DataError(
            f"data.source = '{source}': there is neither a column '{text}' (data.text) nor a column '{image}' "
            "(data.image)"
            f"{hint}; columns: {', '.join(raw.names)}; rows of numbers and categories need model.task = "
            f"{one_of(tasks_where(lambda task: task.reads == 'table'))}"
        )
    kind = "image" if has_image and not posed and not (has_text and (pair or target)) else "text"
    troubles = Troubles(raw.origin, raw.troubles, on_missing)
    inputs: Inputs
    turns = None
    targets = None if target is None else strings(raw, "target", target, source, troubles)
    if kind == "image":
        told_of = f"data.source = '{source}'"
        inputs = decoded(column(raw, "image", image, source), f"column '{found(raw, image)}'", troubles, told_of)
    elif layout != "plain":
        dialogues = conversations(raw, layout, troubles)
        turns, targets = (dialogues.turns if prompt is None else None), targets or dialogues.completions
        inputs = [rendered(one) for one in dialogues.turns]
    elif prompt is None:
        inputs = strings(raw, "text", text, source, troubles)
    if prompt is not None:
        inputs = filled(prompt, raw, {"text": text} | ({"pair": pair} if pair else {}), source, troubles)
    labelled = _labelled(raw, source, names, kind, inputs, troubles)
    # what stands in a prompt is no second text
    pairs = None if pair is None or prompt is not None else strings(raw, "pair", pair, source, troubles)
    table = replace(labelled, pairs=pairs, targets=targets, turns=turns)
    troubles.refuse(f"data.source = '{source}'")
    if words is not None and targets is not None:
        raise DataError(
            f"data.words = {dict(words)}: are written for classes, and the completions of '{source}' are a column of "
            "their own; leave data.words out"
        )
    table = _without_dropped(table, troubles, source)
    if targets is None and (prompt or words) and table.labels is not None:
        return replace(table, targets=class_words(table.labels.tolist(), table.classes, words))
    return table


def _without_dropped(table: Table, troubles: Troubles, source: str) -> Table:
    """The rows that lack nothing."""
    kept, dropped = troubles.kept(len(table), f"data.source = '{source}'")
    return replace(table.rows(kept), dropped=dropped) if dropped else table


def table_of_cells(
    raw: Raw, source: str, names: Mapping[str, str | None], wanted: Wanted, on_missing: OnMissing = "error"
) -> Table:
    """Rows of numbers and categories: the wanted columns that are not labels, client ids or the published split.

    Parameters
    ----------
    raw, source
        The columns of the source, and its name for messages.
    names
        The names of columns by the key that gives them.
    wanted
        Which columns are read, and as what.
    on_missing
        What happens to rows that lack a label or a client id; other cells may be missing.

    Raises
    ------
    DataError
        if the source lacks a column, or some of its rows cannot be used.
    """
    troubles = Troubles(raw.origin, raw.troubles, on_missing)
    apart = {"is_train"} | {own for key in ("label", "group") if (own := found(raw, names[key] or "")) is not None}
    inputs = read_cells(raw, wanted, apart, source, troubles)
    table = _labelled(raw, source, names, "table", inputs, troubles)
    troubles.refuse(f"data.source = '{source}'")
    return _without_dropped(table, troubles, source)


def _labelled(
    raw: Raw, source: str, names: Mapping[str, str | None], kind: str, inputs: Inputs, troubles: Troubles
) -> Table:
    """The inputs with what every kind of table has: labels, client ids, the published split.

    Parameters
    ----------
    raw, source
        The columns of the source, and its name for messages.
    names
        The names of columns by the key that gives them.
    kind, inputs
        What the rows are, and the rows.
    troubles
        Receives the rows whose values cannot be used.
    """
    label, group = names["label"], names["group"]
    # a source without the default column has no labels; a column that the user named must be there
    has_labels = label is not None and (found(raw, label) is not None or label != "label")
    labels, names_of = classes(raw, str(label), source, troubles) if has_labels else (None, ())
    ids, group_names = (None, ()) if group is None else groups(raw, group, source, troubles)
    return Table(
        kind,
        inputs,
        labels,
        names_of,
        groups=ids,
        group_names=group_names,
        is_train=published(raw, troubles),
        columns=raw.names,
        origin=raw.origin,
    )
