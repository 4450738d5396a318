"""Who holds which rows in a vertical federation, and the record of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fedquilt.config.schema import Config
from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Profile
from fedquilt.data.holdout import label_counts
from fedquilt.data.partition import digest
from fedquilt.data.table import Table
from fedquilt.data.vertical.deal import Dealt
from fedquilt.experiment.groups import BuiltGroup
from fedquilt.experiment.inputs_record import about, missing_record

Reader = Callable[[Config, Rng], tuple[Table | None, Table | None]]
"""Gives the rows of a config's source and its common test rows, as ``data.read`` does."""

UNKNOWN = -1
"""The label of a row whose label its party does not know."""


@dataclass(frozen=True)
class Holding:
    """What one party has of the rows, before its encoder reads them.

    Attributes
    ----------
    table : what it sees of rows; None where they are not in this process.
    labels : the label of each row that it knows, and ``UNKNOWN`` of others, int64 (rows,).
    own, aligned, test : the numbers of its unaligned rows, of those that are aligned, and of those that are predicted.
    tested : what it sees of the test rows where these are another source; ``test`` then are all of these.
    ids : the ids of the rows of its file; empty where rows were dealt.
    """

    table: Table | None
    labels: np.ndarray
    own: np.ndarray
    aligned: np.ndarray
    test: np.ndarray
    tested: Table | None = None
    ids: tuple[str, ...] = ()

    @property
    def known(self) -> np.ndarray:
        """The rows that the party knows before anything is learned, ascending."""
        return np.unique(np.concatenate([self.own, self.aligned]))


@dataclass(frozen=True)
class Rows:
    """The rows of all parties.

    Attributes
    ----------
    tables : what each party sees of all rows, in the order of the parts; the last is the active party's.
    tests : the same of the test rows where these are another source, else None.
    labels, classes : the class number of each row, and the classes' names.
    test_labels : those of the test rows.
    dealt : who holds which rows.
    """

    tables: tuple[Table, ...]
    tests: tuple[Table, ...] | None
    labels: np.ndarray
    classes: tuple[str, ...]
    test_labels: np.ndarray
    dealt: Dealt

    def holding(self, number: int, *, labelled: bool) -> Holding:
        """What the party with this number has; without labels of its own rows unless ``labelled``."""
        own = self.labels.copy() if labelled else np.full_like(self.labels, UNKNOWN)
        for row, wrong in self.dealt.noisy.items() if labelled else ():
            own[row] = wrong
        dealt = self.dealt
        table, tested = self.tables[number], None if self.tests is None else self.tests[number]
        test = dealt.test if tested is None else np.arange(len(tested))
        return Holding(table, own, dealt.unaligned[number], dealt.aligned, test, tested)

    @property
    def digest(self) -> str:
        """The digest of who holds which rows, and of wrong labels."""
        noisy = np.array(sorted(self.dealt.noisy.items()), dtype=np.int64).reshape(-1)
        return digest([self.dealt.aligned, *self.dealt.unaligned, self.dealt.test, noisy])


@dataclass(frozen=True)
class Held:
    """What all parties have.

    Attributes
    ----------
    holdings : what each party has, in the order of the parts; the active party's last.
    classes : the names of all classes.
    labels, test_labels : the active party's labels, see ``core.vertical.Vertical``.
    dealt : the rows of the one source that were dealt to them; None where each has a file.
    """

    holdings: Sequence[Holding]
    classes: tuple[str, ...]
    labels: Tensor
    test_labels: Tensor
    dealt: Rows | None = None


def refuse_other_rows(tables: Sequence[Table]) -> None:
    """Raise DataError if parties that read other columns of one source would leave out other rows of it."""
    if len({table.dropped for table in tables}) > 1:
        raise DataError(
            "data.on_missing = 'drop': the parties read other columns of the source, in which values of different rows "
            "are missing; remove these rows from the source"
        )


def vertical_record(
    rows: Rows, profiles: Sequence[Profile], groups: Sequence[BuiltGroup], active: str
) -> dict[str, Any]:
    """Who holds which rows, for ``partition.json``."""
    dealt = rows.dealt
    counts = label_counts(dealt.unaligned, rows.labels, rows.classes)
    clients = [
        {
            **about(profile),
            "train": dealt.unaligned[profile.id].tolist(),
            "validation": [],
            "test": [],
            "labels": counts[profile.id],
        }
        for profile in profiles
    ]
    aligned = label_counts([dealt.aligned], rows.labels, rows.classes)[0]
    return {
        "digest": hashlib.sha256(json.dumps([rows.digest, [group.label for group in groups]]).encode()).hexdigest(),
        "classes": list(rows.classes),
        "proxy": [],
        "clients": clients,
        "groups": [
            {"label": group.label, "architecture": group.architecture, "task": group.config.model.task}
            for group in groups
        ],
        **missing_record(rows.tables[-1]),
        "vertical": {
            "active": active,
            "aligned": aligned,
            "own": counts[-1],
            "test": len(rows.test_labels),
            "aligned_rows": dealt.aligned.tolist(),
        },
    }
