"""Charts of a run in which a server's model and its clients' models teach each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedquilt.report.charts import Chart, lines
from fedquilt.report.columns import counted
from fedquilt.report.groups import SERVER, group_curve
from fedquilt.report.lessons import Pupil, pupils
from fedquilt.report.runs import Run, client_names
from fedquilt.report.score_charts import MOST_LINES, thinned, tidy
from fedquilt.report.scores import client_curves, main_metric, scale_of

_NUMBERS: Mapping[str, tuple[str, str, str]] = {
    "taken": ("choice", "Samples chosen: share of the offered paths that each student took", "share taken"),
    "taken_right": ("right-paths", "Share of right paths among those that each student took", "right of taken"),
    "offered_right": ("right-offered", "Share of right paths among those offered", "right of offered"),
    "label_correlation": ("reward", "Correlation of predicted and realised rewards", "correlation"),
    "label_error": ("reward-error", "Error of the predicted rewards", "error"),
}


def lesson_charts(run: Run, label: str, name: str) -> Iterator[Chart]:
    """Yield a chart of each number that students told about their choices, and of the server's score beside theirs."""
    if (drawn := _sides(run, label, name)) is not None:
        yield drawn
    told = pupils(run)
    for number, (short, title, y) in _NUMBERS.items():
        own = [one for one in told if number in one.numbers]
        if own:
            yield _numbers(own, number, y, f"{title}: {label}", f"{short}-{name}")


def _numbers(own: list[Pupil], number: str, y: str, title: str, name: str) -> Chart:
    """A line for each pair of student and teacher.

    Parameters
    ----------
    own
        The pairs, all of which told the number.
    number, y
        Which of their numbers, and what it is in words.
    title, name
        The chart's.
    """
    rows: list[list[Any]] = []
    ends = []
    notes = set()
    for one in own[:MOST_LINES]:
        who = f"{one.student}, taught by {one.teacher}"
        rounds, values = one.numbers[number]
        points, note = thinned([*zip(rounds, values, strict=True)])
        notes.add(note)
        rows += [[who, at + 1, tidy(value)] for at, value in points]
        ends.append(values[-1])
    about = f"{counted(len(own), 'pair')} of student and teacher; at the end from {min(ends):.2f} to {max(ends):.2f}."
    left = [f"The first {MOST_LINES} of {len(own)} pairs are drawn."] if len(own) > MOST_LINES else []
    spec = lines("round", y, "student", places=2, zero=True)
    columns = {"series": "student", "x": "round", "y": y}
    return Chart(name, title, about, spec, columns, rows, " ".join([*sorted(notes - {""}), *left]))


def _sides(run: Run, label: str, name: str) -> Chart | None:
    """The score of the server's model beside those of the clients' models; None where the server owns none."""
    metric = main_metric(run)
    scale, y = scale_of(metric)
    own = group_curve(run, SERVER, metric, "global")
    if not own[0]:
        return None
    names = client_names(run)
    found = {SERVER: own}
    found |= {f"client {names.get(one, one)}": series for one, series in client_curves(run, metric).items()}
    rows, notes = [], set()
    for who, (rounds, values) in [*found.items()][:MOST_LINES]:
        points, note = thinned([*zip(rounds, values, strict=True)])
        notes.add(note)
        rows += [[who, at + 1, tidy(value * scale)] for at, value in points]
    others = counted(len(found) - 1, "client")
    about = f"{y.capitalize()} of the server's model and of those of {others}, each on its own test set. "
    about += f"The server's ends at {own[1][-1] * scale:.3g}."
    left = [f"The first {MOST_LINES} of {len(found)} models are drawn."] if len(found) > MOST_LINES else []
    spec = lines("round", y, "model", places=1 if metric == "accuracy" else 3)
    title = f"The server's model beside the clients': {label}"
    columns = {"series": "model", "x": "round", "y": y}
    left_out = " ".join([*sorted(notes - {""}), *left])
    return Chart(f"server-and-clients-{name}", title, about, spec, columns, rows, left_out)
