"""The public inputs of a config, from which adapters in common coordinates get their axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedquilt.adapters.common.settings import Axes
from fedquilt.adapters.registry import KINDS
from fedquilt.client.public import ENDS
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.config.sections import default_of, values_of
from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS
from fedquilt.data.loaders import limited, load_table, published_split
from fedquilt.data.readers.bundled import GLYPHS, PASSAGES
from fedquilt.data.table import Columns, Table
from fedquilt.experiment.features import wanted_cells
from fedquilt.models.loaded import Loaded
from fedquilt.models.words import ends_of_words

_SOURCES = {"image": GLYPHS, "text": PASSAGES}
"""Where the public inputs come from if the config names no source, by what the models read."""

_ROWS = {"tokens": "image", "words": "text"}
"""What models must read for observations of this kind; others are for all models."""


def odd_axes(config: Config, parts: Sequence[Part]) -> list[str]:
    """Problems of [axes]: keys without effect, and what adapters in common coordinates do not go with."""
    own, kinds = config.axes, {part.config.adapter.kind for part in parts}
    readers = " and ".join(f"'{name}'" for name, kind in KINDS.items() if kind.needs_public)
    if not any(KINDS[kind].needs_public for kind in kinds):
        return [
            f"axes.{key} = {value!r}: has no effect; only adapters of kind = {readers} read public inputs; leave it out"
            for key, value in values_of(own).items()
            if value != default_of(Axes, key)
        ]
    problems = []
    reads = {TASKS[part.config.model.task].reads for part in parts}
    if len(reads) > 1:
        problems.append(
            f"model.task: the models of the groups read {', '.join(f'{kind}s' for kind in sorted(reads))}; with "
            f"adapter.kind = '{config.adapter.kind}' all models read the same public inputs"
        )
    elif reads == {"table"} and own.source is None:
        problems.append(
            "axes.source: missing; fedquilt has no public rows of tables: name a file with the columns of the data"
        )
    elif not reads <= {_ROWS.get(own.rows, *reads)}:
        others = sorted({"inputs", *_ROWS} - {rows for rows, kind in _ROWS.items() if kind not in reads})
        problems.append(
            f"axes.rows = '{own.rows}': is for models that read {_ROWS[own.rows]}s, and these read {reads.pop()}s; "
            f"allowed: {', '.join(others)}"
        )
    if own.rows != "words" and own.words != default_of(Axes, "words"):
        problems.append(f"axes.words = {own.words}: only counts with axes.rows = 'words', and this is '{own.rows}'")
    if own.control == "rotated" and own.min_agreement != default_of(Axes, "min_agreement"):
        problems.append(
            f"axes.min_agreement = {own.min_agreement!r}: has no effect with axes.control = 'rotated', which is not "
            "stopped; leave it out"
        )
    if len(kinds) > 1:
        problems.append(
            f"adapter.kind is {' and '.join(map(repr, sorted(kinds)))} in different groups; with {readers} "
            "all groups must have it: set it in [adapter] and leave it out of the groups"
        )
    adapter = config.adapter
    if adapter.kind == "anchored" and own.basis < adapter.rank:
        problems.append(
            f"axes.basis = {own.basis}: is below adapter.rank = {adapter.rank}, so the models' features would "
            "have fewer directions than there are to be shared; give at least the rank"
        )
    return problems


def public_rows(config: Config, loaded: Loaded) -> Columns | None:
    """The public inputs as the model's columns; None for kinds of adapters without axes.

    They depend only on [axes] and on what the models read, not on the run's seed, so that all parties read the same
    ones. With ``axes.rows = "words"`` a column ``ENDS`` says where the words end.

    Raises
    ------
    DataError
        if the source has too few rows, they are not what the model reads, or the model does not read all the words.
    """
    if not KINDS[config.adapter.kind].needs_public:
        return None
    table = _table(config)
    # labels and completions are not used: a language model reads the inputs as plain text
    labels = torch.zeros(len(table), dtype=torch.long)
    bare = replace(table, labels=labels, classes=loaded.outputs.classes or ("",), targets=None, turns=None, groups=None)
    columns = {name: column for name, column in loaded.encode(bare).items() if name != "labels"}
    if config.axes.rows == "words" and loaded.reading.words is not None:
        columns[ENDS] = loaded.reading.words(table.texts, columns, config.axes.words)
    return columns


def _table(config: Config) -> Table:
    own, data, number = config.axes, config.data, config.axes.inputs + config.axes.held_out
    reads = TASKS[config.model.task].reads
    source = own.source or _SOURCES.get(reads, "")
    bundled = source.partition(":")[0] in _SOURCES.values()  # its columns are not called as those of [data]
    text, image = ("text", "image") if bundled else (own.column or data.text, own.column or data.image)
    cells = wanted_cells(config)
    table, _ = published_split(load_table(source, text=text, image=image, objects=config.objects, cells=cells))
    if table.kind != reads:
        raise DataError(f"axes.source = '{source}': holds {table.kind}s, and the model reads {reads}s")
    with_words = ""
    if own.rows == "words":
        table = table.rows([row for row, text in enumerate(table.texts) if _long_enough(text, own.words)])
        with_words = f" of at least axes.words = {own.words} words"
    if len(table) < number:
        raise DataError(
            f"axes.source = '{source}': has {len(table)} rows{with_words}, and axes.inputs = {own.inputs} and "
            f"axes.held_out = {own.held_out} need {number}"
        )
    return limited(table, number, Rng(0).child("axes"))


def _long_enough(text: str, words: int) -> bool:
    return len(ends_of_words(text, words)) == words
