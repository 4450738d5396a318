"""Scores of each group of a federation, and of the worst group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fedquilt.report.runs import Run
from fedquilt.report.scores import LOWER_IS_BETTER, final_evaluation, window

WORST = "worst group"
SERVER = "server"
"""The row of the model that the server owns; no group has this label beside it."""

ENDED = ("global", "personalised", "final", "final_personalised")
Ended = dict[str, float | None]


def group_labels(run: Run) -> list[str]:
    """Return the labels of the run's groups, in order; empty for a run without groups."""
    return [str(group["label"]) for group in run.config.get("groups") or ()]


def owner_labels(run: Run) -> list[str]:
    """Return the labels of the run's groups and, if the server owns a model, ``SERVER``."""
    return [*group_labels(run), *([SERVER] if (run.config.get("server") or {}).get("model") else [])]


def group_curve(run: Run, label: str, metric: str, who: str) -> tuple[list[int], list[float]]:
    """Return the rounds in which a group's metric was measured, and its values.

    ``who`` is ``global`` (the group's global model on the group's test set) or ``clients`` (the unweighted mean over
    the group's clients, each on its own test set).
    """
    members = _members(run, label)
    found = [
        (int(line["round"]), _group_score(line.get("evaluation"), label, members, metric, who)) for line in run.rounds
    ]
    measured = [(round, value) for round, value in found if value is not None]
    return [round for round, _ in measured], [value for _, value in measured]


def _members(run: Run, label: str) -> set[str]:
    return {str(client["id"]) for client in run.partition.get("clients", ()) if client.get("group") == label}


def _group_score(
    evaluation: Mapping[str, Any] | None, label: str, members: Collection[str], metric: str, who: str
) -> float | None:
    evaluation = evaluation or {}
    if who == "global":
        whole = {**(evaluation.get("groups") or {}), SERVER: evaluation.get("server")}
        scores = [whole.get(label) or {}]
    else:
        scores = [own for id, own in (evaluation.get("clients") or {}).items() if id in members]
    measured = [float("nan") if own[metric] is None else float(own[metric]) for own in scores if metric in own]
    return float(np.mean(measured)) if measured else None


def group_rows(
    runs_by_label: Mapping[str, Sequence[Run]], metric: str, last: int | None = None
) -> list[dict[str, Any]]:
    """Return one row per label and group, one per label for the worst group, and one for the model that a server owns.

    ``global`` and ``personalised`` are means over seeds of a run's mean over its last ``last`` evaluated rounds,
    ``final`` and ``final_personalised`` those of the final model, each with its sample standard deviation over seeds.
    The worst group is determined separately in each run and for each measure.
    """
    return [
        _row(label, name, metric, ended)
        for label, runs in runs_by_label.items()
        for name, ended in group_values(runs, metric, last).items()
    ]


def group_values(runs: Sequence[Run], metric: str, last: int | None = None) -> dict[str, list[Ended]]:
    """Return the scores of each group in each run of one label, and of the worst group if there are several.

    A run's ``global`` and ``personalised`` are means over its last evaluated rounds (``last`` of them, or as many as
    its run file says), ``final`` and ``final_personalised`` those of its final model; None: not measured.
    """
    names = list(dict.fromkeys(name for run in runs for name in group_labels(run)))
    owners = list(dict.fromkeys(name for run in runs for name in owner_labels(run)))
    found = {name: [_ended(run, name, metric, last) for run in runs] for name in owners}
    if len(names) > 1:
        found[WORST] = [_worst([found[name][at] for name in names], metric) for at in range(len(runs))]
    return found


def apart_note(label: str, runs: Sequence[Run]) -> list[str]:
    """Return a sentence if the label's method ran separately in each architecture; otherwise none."""
    names = next((run.environment["apart"] for run in runs if run.environment.get("apart")), None)
    if not names:
        return []
    return [f"{label}: ran separately in each of {len(names)} architectures; nothing was shared between them."]


def _ended(run: Run, name: str, metric: str, last: int | None) -> Ended:
    found: Ended = {}
    for measure, who in (("global", "global"), ("personalised", "clients")):
        values = group_curve(run, name, metric, who)[1][-window(run, last) :]
        found[measure] = float(np.mean(values)) if values else None
        found["window"] = max(found.get("window") or 0, len(values))
    for measure, who in (("final", "global"), ("final_personalised", "clients")):
        found[measure] = _group_score(final_evaluation(run), name, _members(run, name), metric, who)
    return found


def _worst(groups: Sequence[Ended], metric: str) -> Ended:
    worst = max if metric in LOWER_IS_BETTER else min
    found: Ended = {}
    for measure in ENDED:
        values = [value for group in groups if (value := group[measure]) is not None]
        found[measure] = worst(values) if len(values) == len(groups) else None
    return found


def _row(label: str, name: str, metric: str, ended: Sequence[Ended]) -> dict[str, Any]:
    row: dict[str, Any] = {"label": label, "group": name, "metric": metric, "seeds": len(ended)}
    row["window"] = max((int(one.get("window") or 0) for one in ended), default=0)
    for measure in ENDED:
        values = [value for one in ended if (value := one[measure]) is not None]
        row[measure] = float(np.mean(values)) if values else None
        row[f"{measure}_deviation"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return row
