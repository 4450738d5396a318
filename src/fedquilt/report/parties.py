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

KEPT_ROWS = "Rows of their own that parties learned from, in per cent, over the rounds in which rows were left out"
"""The heading of ``kept_rows``."""

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


def kept_of(run: Run) -> dict[str, dict[str, list[float | None]]]:
    """Return the share of its own rows of each class that a party learned from in each round, by party and by class.

    None for a round without such rows, or without the party. Empty for runs in which no rows are left out.
    """
    classes, lines = [str(name) for name in run.partition.get("classes", ())], run.rounds
    tables = [(line.get("state") or {}).get("kept") or {} for line in lines]
    empty: list[float | None] = [None] * len(classes)
    return {
        party: dict(
            zip(classes, map(list, zip(*(table.get(party, empty) for table in tables), strict=True)), strict=True)
        )
        for party in party_names(run)
        if any(party in table for table in tables)
    }


def kept_rows(groups: Groups) -> list[Row]:
    """Return one row for each label and party that left rows out: the share that it kept, and of which class least.

    Each share is the mean over classes, seeds and the rounds in which some row was left out, and so are those of the
    class of which it kept the smallest share, ``least``, and the largest, ``most``.
    """
    rows: list[Row] = []
    for label, runs in groups.items():
        found: dict[str, dict[str, list[float]]] = {}
        for party, shares in ((party, shares) for run in runs for party, shares in kept_of(run).items()):
            some = [any(share is not None and share < 1 for share in now) for now in zip(*shares.values(), strict=True)]
            for name, own in shares.items():
                told = [share for share, left_out in zip(own, some, strict=True) if left_out and share is not None]
                found.setdefault(party, {}).setdefault(name, []).extend(told)
        for party, by_class in found.items():
            means = {name: float(np.mean(own)) for name, own in by_class.items() if own}
            if means:
                least, most = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
                row: Row = {"label": label, "party": party, "kept": float(np.mean([*means.values()]))}
                rows.append(row | {"least": (least, means[least]), "most": (most, means[most])})
    return rows


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


def of_parties(groups: Groups, last: int | None = None) -> list[tuple[str, list[Row]]]:
    """Return the headings and the rows of all tables about parties that have rows."""
    kinds = ((JOINT, joint_rows(groups, last)), (WITHOUT, missing_rows(groups, last)), (KEPT_ROWS, kept_rows(groups)))
    return [(heading, rows) for heading, rows in kinds if rows]


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
