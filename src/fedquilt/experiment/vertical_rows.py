"""Who holds which rows in a vertical federation, and the record of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedquilt.core.types import Profile
from fedquilt.data.holdout import label_counts
from fedquilt.data.partition import digest
from fedquilt.data.table import Table
from fedquilt.data.vertical.deal import Dealt
from fedquilt.experiment.groups import BuiltGroup


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

    @property
    def digest(self) -> str:
        """The digest of who holds which rows, and of wrong labels."""
        noisy = np.array(sorted(self.dealt.noisy.items()), dtype=np.int64).reshape(-1)
        return digest([self.dealt.aligned, *self.dealt.unaligned, self.dealt.test, noisy])


def vertical_record(
    rows: Rows, profiles: Sequence[Profile], groups: Sequence[BuiltGroup], active: str
) -> dict[str, Any]:
    """Who holds which rows, for ``partition.json``."""
    dealt = rows.dealt
    counts = label_counts(dealt.unaligned, rows.labels, rows.classes)
    clients = [
        {
            "id": profile.id,
            "architecture": profile.architecture,
            "budget": profile.budget.layers,
            "rank": profile.budget.rank,
            "task": profile.task,
            "examples": profile.num_examples,
            "group": profile.group,
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
        "vertical": {
            "active": active,
            "aligned": aligned,
            "own": counts[-1],
            "test": len(rows.test_labels),
            "aligned_rows": dealt.aligned.tolist(),
        },
    }
