"""Caveats of a comparison: differences between runs that limit it, dropped clients and resumed runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedquilt.core.evaluated import without_auto
from fedquilt.report.agreement import agreement_words
from fedquilt.report.disclosure import disclosure_words
from fedquilt.report.groups import apart_note
from fedquilt.report.runs import Run, client_names, diverged, dropped, privacy, resumed
from fedquilt.report.scores import window
from fedquilt.report.table import Groups, epsilon_of


def notes(groups: Groups, last: int | None = None) -> list[str]:
    """Return sentences on differences that make the labels less comparable than the table suggests, and on mishaps."""
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
        found.append(f"The runs are averaged over different numbers of last evaluated rounds ({listed}).")
    for label, runs in groups.items():
        found += apart_note(label, runs)
        if unfinished := [str(run.seed) for run in runs if not run.finished]:
            found.append(f"{label}: unfinished at seed {', '.join(unfinished)}; its numbers cover the rounds so far.")
        if runs and (spent := privacy(max(runs, key=lambda run: epsilon_of(run) or 0.0))):
            found.append(f"{label}: {_privacy_words(spent)}")
        if any(_of_cohorts(run) for run in runs):
            found.append(
                f"{label}: scores of clients are those of the clients that took part in each evaluated round, not of "
                "all clients (evaluation.clients)."
            )
        found += [f"{label}: {words}" for run in runs[:1] if (words := disclosure_words(run))]
        for run in runs:
            more = [words] if (words := agreement_words(run)) else []
            if writer := run.environment.get("endpoint"):
                more.append(
                    f"the endpoint {writer['name']} at {writer['url']} wrote the server's texts; it need not write the "
                    "same again, so another run with this seed may end elsewhere."
                )
            found += [f"{label}, seed {run.seed}: {what}" for what in (*happened(run), *more)]
    digests: dict[str, set[str]] = {}
    for runs in groups.values():
        for run in runs:
            digests.setdefault(str(run.seed), set()).add(str(run.partition.get("digest")))
    if different := [seed for seed, values in digests.items() if len(values) > 1]:
        found.append(f"The labels do not share one partition of the data at seed {', '.join(different)}.")
    return found


def _of_cohorts(run: Run) -> bool:
    """Whether the clients of each cohort alone were evaluated after their rounds."""
    who = (run.config.get("evaluation") or {}).get("clients", True)
    return without_auto(who, len(run.partition.get("clients") or ())) == "cohort"


def happened(run: Run, most: int = 10) -> list[str]:
    """Return sentences on mishaps of a run: dropped clients, trainings that diverged, and where it was resumed.

    Rounds are counted from 1, as in the progress output. At most ``most`` pairs of client and reason are listed.
    """
    rounds: dict[tuple[int, str], list[int]] = {}
    names = client_names(run)
    for loss in dropped(run):
        rounds.setdefault((loss["client"], loss["reason"]), []).append(loss["round"] + 1)
    found = [
        f"client {names.get(client, client)} dropped in round{'s' if len(when) > 1 else ''} {spans(when)}: {reason}."
        for (client, reason), when in sorted(rounds.items())
    ]
    if len(found) > most:
        found[most:] = [f"{len(found) - most} more clients or reasons; rounds.jsonl and the HTML report list them all."]
    undone: dict[str, list[int]] = {}
    for line in run.rounds:
        for who in diverged(line):
            undone.setdefault(who, []).append(int(line["round"]) + 1)
    found += [
        f"training of '{who}' at the server diverged in round{'s' if len(when) > 1 else ''} {spans(when)}: a loss or a "
        "gradient was not finite, so it stayed as it was."
        for who, when in undone.items()
    ]
    if again := resumed(run):
        found.append(f"stopped and resumed before round {', '.join(str(number + 1) for number in again)}.")
    return found


def spans(numbers: Sequence[int]) -> str:
    """``1-3, 7`` for 1, 2, 3 and 7."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _privacy_words(spent: Mapping[str, Any]) -> str:
    """Return a sentence on the epsilon of any one client, and on its conditions."""
    if spent["epsilon"] is None:
        return "updates were clipped but no noise was added, so there is no differential privacy."
    words = f"{spent['mode']} differential privacy of whole clients: epsilon {spent['epsilon']:.2f}"
    words += f" at delta {spent['delta']:g}"
    hidden = spent.get("epsilon_secret_cohorts")
    if hidden is not None and hidden < spent["epsilon"]:
        words += (
            f" ({hidden:.2f} as long as only the server knows who took part in which round; this record reveals it)"
        )
    if spent["test_key"]:
        words += "; the noise was drawn from a test key and protects nothing against those who know the key"
    return f"{words}. Evaluation is not covered: scores on clients' own rows are exact."
