"""Sentences on what makes runs less comparable than their table looks, and on what went wrong on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedquilt.report.groups import apart_note
from fedquilt.report.runs import Run, client_names, dropped, privacy, resumed
from fedquilt.report.scores import window
from fedquilt.report.table import Groups, epsilon_of


def notes(groups: Groups, last: int | None = None) -> list[str]:
    """Sentences on what makes the labels less comparable than their table looks; empty where nothing does."""
    found = []
    seeds = {label: sorted(str(run.seed) for run in runs) for label, runs in groups.items()}
    if len({tuple(value) for value in seeds.values()}) > 1:
        listed = "; ".join(f"{label}: {', '.join(value)}" for label, value in seeds.items())
        found.append(f"The labels were not run with the same seeds ({listed}).")
    rounds = {label: sorted({len(run.rounds) for run in runs}) for label, runs in groups.items()}
    if len({count for counts in rounds.values() for count in counts}) > 1:
        listed = "; ".join(f"{label}: {', '.join(map(str, value))}" for label, value in rounds.items())
        found.append(f"The runs do not have the same number of rounds ({listed}).")
    spans = {label: sorted({window(run, last) for run in runs}) for label, runs in groups.items()}
    if len({span for value in spans.values() for span in value}) > 1:
        listed = "; ".join(f"{label}: {', '.join(map(str, value))}" for label, value in spans.items())
        found.append(f"The runs are not averaged over the same number of evaluated rounds at their end ({listed}).")
    for label, runs in groups.items():
        found += apart_note(label, runs)
        if unfinished := [str(run.seed) for run in runs if not run.finished]:
            found.append(f"{label}: unfinished at seed {', '.join(unfinished)}; its numbers are of the rounds so far.")
        if runs and (spent := privacy(max(runs, key=lambda run: epsilon_of(run) or 0.0))):
            found.append(f"{label}: {_privacy_words(spent)}")
        for run in runs:
            found += [f"{label}, seed {run.seed}: {what}" for what in happened(run)]
    digests: dict[str, set[str]] = {}
    for runs in groups.values():
        for run in runs:
            digests.setdefault(str(run.seed), set()).add(str(run.partition.get("digest")))
    if unlike := [seed for seed, values in digests.items() if len(values) > 1]:
        found.append(f"The data were not split alike for all labels at seed {', '.join(unlike)}.")
    return found


def happened(run: Run, most: int = 10) -> list[str]:
    """Sentences on what went wrong on the way: who was dropped when and why, and where the run was taken up again.

    Rounds are counted from 1, as the progress of a run shows them. At most ``most`` pairs of client and reason.
    """
    rounds: dict[tuple[int, str], list[int]] = {}
    names = client_names(run)
    for loss in dropped(run):
        rounds.setdefault((loss["client"], loss["reason"]), []).append(loss["round"] + 1)
    found = [
        f"client {names.get(client, client)} dropped in round{'s' if len(when) > 1 else ''} {_spans(when)}: {reason}."
        for (client, reason), when in sorted(rounds.items())
    ]
    if len(found) > most:
        found[most:] = [f"{len(found) - most} more clients or reasons; rounds.jsonl and the HTML report have them all."]
    if again := resumed(run):
        found.append(f"stopped and taken up again before round {', '.join(str(number + 1) for number in again)}.")
    return found


def _spans(numbers: Sequence[int]) -> str:
    """``1-3, 7`` for 1, 2, 3 and 7."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _privacy_words(spent: Mapping[str, Any]) -> str:
    """A sentence on what the training has cost any one client, and under which condition."""
    if spent["epsilon"] is None:
        return "updates were clipped but no noise was added, so there is no differential privacy."
    words = f"{spent['mode']} differential privacy of whole clients: epsilon {spent['epsilon']:.2f}"
    words += f" at delta {spent['delta']:g}"
    hidden = spent.get("epsilon_secret_cohorts")
    if hidden is not None and hidden < spent["epsilon"]:
        words += f" ({hidden:.2f} if nobody but the server learns who took part in which round; this record tells)"
    if spent["test_key"]:
        words += "; the noise was drawn from a test key and hides nothing from whoever knows it"
    return f"{words}. Evaluation is not covered: scores on clients' own rows are exact."
