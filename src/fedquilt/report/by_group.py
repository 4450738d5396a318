"""How each group of a federation fares: runs of clients that do not match, read group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedquilt.report.read import LOWER_IS_BETTER, Run

WORST = "worst group"
Ended = dict[str, float | None]


def group_labels(run: Run) -> list[str]:
    """The labels of the run's groups, in their order; none of a run without groups."""
    return [str(group["label"]) for group in run.config.get("groups") or ()]


def group_curve(run: Run, label: str, metric: str, who: str) -> tuple[list[int], list[float]]:
    """The evaluated rounds and the metric of one group in each; rounds in which it was not measured are left out.

    ``who``: ``global`` (the group's global model on the group's test rows) or ``clients`` (the plain mean over the
    group's clients, each on its own test rows).
    """
    members = {str(client["id"]) for client in run.partition.get("clients", ()) if client.get("group") == label}
    rounds, values = [], []
    for line in run.rounds:
        evaluation = line.get("evaluation") or {}
        if who == "global":
            scores = [(evaluation.get("groups") or {}).get(label) or {}]
        else:
            scores = [own for id, own in (evaluation.get("clients") or {}).items() if id in members]
        measured = [float("nan") if own[metric] is None else float(own[metric]) for own in scores if metric in own]
        if measured:
            rounds.append(int(line["round"]))
            values.append(float(np.mean(measured)))
    return rounds, values


def group_rows(runs_by_label: Mapping[str, Sequence[Run]], metric: str, last: int = 5) -> list[dict[str, Any]]:
    """One row for each label and group over its seeds, and one for the worst group; none without groups.

    ``global`` and ``personalised`` are means over seeds of a run's mean over its last ``last`` evaluated rounds, each
    with its sample deviation over seeds. The worst group is found in each run anew, by what is measured.
    """
    return [
        _row(label, name, metric, ended)
        for label, runs in runs_by_label.items()
        for name, ended in group_values(runs, metric, last).items()
    ]


def group_values(runs: Sequence[Run], metric: str, last: int = 5) -> dict[str, list[Ended]]:
    """What each group of one label's runs ended with, run by run, and the worst of each run where there are several.

    A run's ``global`` and ``personalised`` are its means over its last ``last`` evaluated rounds, None if not measured.
    """
    names = list(dict.fromkeys(name for run in runs for name in group_labels(run)))
    found = {name: [_ended(run, name, metric, last) for run in runs] for name in names}
    if len(names) > 1:
        found[WORST] = [_worst([found[name][at] for name in names], metric) for at in range(len(runs))]
    return found


def apart_note(label: str, runs: Sequence[Run]) -> list[str]:
    """A sentence, if the label's method ran in each architecture apart; none if it did not."""
    names = next((run.environment["apart"] for run in runs if run.environment.get("apart")), None)
    if not names:
        return []
    return [f"{label}: ran in each of {len(names)} architectures apart, and nothing was shared between them."]


def _ended(run: Run, name: str, metric: str, last: int) -> Ended:
    found: Ended = {}
    for measure, who in (("global", "global"), ("personalised", "clients")):
        values = group_curve(run, name, metric, who)[1][-last:]
        found[measure] = float(np.mean(values)) if values else None
    return found


def _worst(groups: Sequence[Ended], metric: str) -> Ended:
    worst = max if metric in LOWER_IS_BETTER else min
    found: Ended = {}
    for measure in ("global", "personalised"):
        values = [value for group in groups if (value := group[measure]) is not None]
        found[measure] = worst(values) if len(values) == len(groups) else None
    return found


def _row(label: str, name: str, metric: str, ended: Sequence[Ended]) -> dict[str, Any]:
    row: dict[str, Any] = {"label": label, "group": name, "metric": metric, "seeds": len(ended)}
    for measure in ("global", "personalised"):
        values = [value for one in ended if (value := one[measure]) is not None]
        row[measure] = float(np.mean(values)) if values else None
        row[f"{measure}_deviation"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return row
