"""The public inputs of a config, from which adapters in common coordinates get their axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from fedquilt.adapters.common.settings import Axes
from fedquilt.adapters.registry import KINDS
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.config.sections import default_of, values_of
from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS
from fedquilt.data.loaders import limited, load_table, published_split
from fedquilt.data.synthetic.glyphs import glyph_table
from fedquilt.data.table import Columns, Table
from fedquilt.models.loaded import Loaded

GLYPHS = "glyphs"
"""The source of drawings of letters, which are made when they are needed."""


def odd_axes(config: Config, parts: Sequence[Part]) -> list[str]:
    """Problems of [axes]: adapters in common coordinates without public inputs, and what they do not go with."""
    named, kinds = config.axes.source, {part.config.adapter.kind for part in parts}
    if not any(KINDS[kind].needs_public for kind in kinds):
        return [
            f"axes.{key} = {value!r}: has no effect; only adapters of kind = 'common' read public inputs; leave it out"
            for key, value in values_of(config.axes).items()
            if value != default_of(Axes, key)
        ]
    problems = []
    if named is None:
        problems.append(
            "axes.source: missing; adapter.kind = 'common' finds coordinates that models have in common on public "
            "inputs, which every client has: name a file, a source on the hub, or 'glyphs' for drawings of letters"
        )
    if len(kinds) > 1:
        problems.append(
            f"adapter.kind is {' and '.join(map(repr, sorted(kinds)))} in different groups; with 'common' all groups "
            "must have it: set it in [adapter] and leave it out of the groups"
        )
    if config.privacy.mode != "none":
        problems.append(
            f"privacy.mode = '{config.privacy.mode}': adapters in common coordinates need an exchange of their own in "
            "the first round, which is not accounted; set it to 'none', or another adapter.kind"
        )
    return problems


def public_rows(config: Config, loaded: Loaded) -> Columns | None:
    """The public inputs as the model's columns; None for kinds of adapters without axes.

    They depend only on [axes], not on the run's seed, so that all parties read the same ones.

    Raises
    ------
    DataError
        if the source has too few rows, or they are not what the model reads.
    """
    if not KINDS[config.adapter.kind].needs_public:
        return None
    table = _table(config)
    reads = TASKS[config.model.task].reads
    if table.kind != reads:
        raise DataError(f"axes.source = '{config.axes.source}': holds {table.kind}s, and the model reads {reads}s")
    # labels and completions are not used: a language model reads the inputs as plain text
    labels = torch.zeros(len(table), dtype=torch.long)
    bare = replace(table, labels=labels, classes=loaded.outputs.classes or ("",), targets=None, turns=None, groups=None)
    columns = loaded.encode(bare)
    return {name: column for name, column in columns.items() if name != "labels"}


def _table(config: Config) -> Table:
    own, number = config.axes, config.axes.inputs + config.axes.held_out
    if own.source == GLYPHS:
        return _glyphs(number)
    data = config.data
    text, image = own.column or data.text, own.column or data.image
    table, _ = published_split(load_table(str(own.source), text=text, image=image, objects=config.objects))
    if len(table) < number:
        raise DataError(
            f"axes.source = '{own.source}': has {len(table)} rows, and axes.inputs = {own.inputs} and axes.held_out = "
            f"{own.held_out} need {number}"
        )
    return limited(table, number, Rng(0).child("axes"))


@lru_cache(maxsize=1)
def _glyphs(number: int) -> Table:
    return glyph_table(number, Rng(0).child("axes"))
