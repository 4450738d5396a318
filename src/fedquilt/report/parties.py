"""The parties of a vertical federation: who has rows of which class, and the scores of what they predict together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedquilt.report.runs import Run, as_number, client_table
from fedquilt.report.scores import window
from fedquilt.report.table import Groups, Row, deviation, mean

JOINT = "Classes that aligned rows had (seen) and had not (unseen), in per cent"
"""The heading of ``joint_rows``."""

WITHOUT = "Accuracy without one party, in per cent"
"""The heading of ``missing_rows``."""

SCORES = ("accuracy", "worst_class", "seen", "unseen", "harmonic")
"""Scores of a joint prediction: accuracy, the recall of the worst class, and those of seen and of unseen classes with
their harmonic mean."""

GATE, ALIKE = "gate", "prototype_cosines"
"""The tables of a method's state that are drawn: weights of parties by class, and cosines of class prototypes."""

_SCORE = ("evaluation", "global")


class Holdings(NamedTuple):
    """Who holds how many rows of which class: aligned rows, which all parties hold, and rows of each party's own.

    ``own`` is by party, the active one last, and each count by class.
    """

    classes: tuple[str, ...]
    aligned: Mapping[str, int]
    own: Mapping[str, Mapping[str, int]]


def is_vertical(run: Run) -> bool:
    """Whether the run's parties hold other columns of the same rows."""
    return bool(run.partition.get("vertical"))


def party_names(run: Run) -> list[str]:
    """Return the names of the parties of a vertical run, the active one last; empty for other runs."""
    if not is_vertical(run):
        return []
    passive = [str(client.get("group", client["id"])) for client in client_table(run)]
    return [*passive, str(run.partition["vertical"]["active"])]


def holdings(run: Run) -> Holdings | None:
    """Return who holds how many rows of which class; None for runs that are not vertical."""
    if not is_vertical(run):
        return None
    vertical = run.partition["vertical"]
    counts = [client.get("labels") or {} for client in client_table(run)]
    own = dict(zip(party_names(run), [*counts, vertical.get("own") or {}], strict=True))
    return Holdings(tuple(map(str, run.partition.get("classes", ()))), vertical.get("aligned") or {}, own)


def table_of(run: Run, name: str) -> dict[str, list[float]]:
    """Return a table of the method's state in the last round that was evaluated and has it; empty if none has."""
    for line in reversed(run.rounds):
        found = (line.get("state") or {}).get(name)
        if line.get("evaluation") and isinstance(found, Mapping):
            return {str(key): [as_number(value) for value in values] for key, values in found.items()}
    return {}


def joint_rows(groups: Groups, last: int | None = None) -> list[Row]:
    """Return one row for each label of vertical runs: the scores of the joint prediction, by ``SCORES``.

    Each is the mean over seeds of a run's mean over its last ``last`` evaluated rounds, with the sample standard
    deviation over seeds; None stands for a score that was not measured.
    """
    rows: list[Row] = []
    for label, runs in groups.items():
        own = [run for run in runs if is_vertical(run)]
        if not own:
            continue
        row: Row = {"label": label, "seeds": len(own)}
        for name in SCORES:
            values = [value for run in own if (value := _ended(run, last, _SCORE, name)) is not None]
            row[name], row[f"{name}_deviation"] = mean(values), deviation(values)
        rows.append(row)
    return rows


def missing_rows(groups: Groups, last: int | None = None) -> list[Row]:
    """Return one row for each label and passive party: the accuracy without it, and how much that is below all's.

    Means over seeds, as those of ``joint_rows``. Methods whose parties do not predict together have no rows.
    """
    rows: list[Row] = []
    for label, runs in groups.items():
        for party in dict.fromkeys(name for run in runs for name in party_names(run)[:-1]):
            both = [
                (whole, less)
                for run in runs
                if (whole := _ended(run, last, _SCORE, "accuracy")) is not None
                and (less := _ended(run, last, ("state",), f"without {party}")) is not None
            ]
            if both:
                lost = [whole - less for whole, less in both]
                left = [less for _, less in both]
                row: Row = {"label": label, "without": party, "seeds": len(both), "lost": mean(lost)}
                rows.append(row | {"accuracy": mean(left), "accuracy_deviation": deviation(left)})
    return rows


def _ended(run: Run, last: int | None, where: Sequence[str], name: str) -> float | None:
    """The mean of a number over the last evaluated rounds, ``where`` it stands in their lines; None if in none."""
    values = []
    for line in run.rounds:
        found: Any = line if line.get("evaluation") else {}
        for key in where:
            found = found.get(key) or {}
        if name in found:
            values.append(as_number(found[name]))
    return float(np.mean(values[-window(run, last) :])) if values else None
