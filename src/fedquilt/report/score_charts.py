"""Charts with a line for each label: scores over rounds and bytes, of groups and of extremes, and what was spent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedquilt.report.charts import Chart, lines
from fedquilt.report.columns import human_bytes, human_metric
from fedquilt.report.curves import mean_bytes, mean_curve
from fedquilt.report.groups import SERVER, group_curve, owner_labels
from fedquilt.report.runs import BYTE_UNITS, Run, client_names, cumulative_bytes, exchange_bytes
from fedquilt.report.scores import LOWER_IS_BETTER, WHO, scale_of
from fedquilt.report.table import Groups

MOST_POINTS = 300
"""The largest number of points of a line; of more, some are drawn that are evenly spaced."""

MOST_LINES = 40
"""The largest number of lines of a chart."""

_NAMED = 8  # lines that the words about a chart name

Point = tuple[float, float]


def tidy(value: Any) -> float | None:
    """A number as charts hold it, with six digits; None where it is not finite."""
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def thinned(points: Sequence[Any]) -> tuple[list[Any], str]:
    """At most ``MOST_POINTS`` of these points, evenly spaced and with the last, and a sentence if some are left out."""
    if len(points) <= MOST_POINTS:
        return [*points], ""
    places = np.unique(np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int))
    return [points[at] for at in places], f"Lines are drawn through {MOST_POINTS} of their {len(points):,} points."


def over_rounds(groups: Groups, who: str, metric: str) -> Chart | None:
    """The score over rounds, a line for each label; None where no run measured it."""
    return _scores(groups, who, metric, in_bytes=False)


def over_bytes(groups: Groups, who: str, metric: str) -> Chart | None:
    """The score over the bytes sent so far; None where no run measured it, or none sent anything."""
    return _scores(groups, who, metric, in_bytes=True)


def _scores(groups: Groups, who: str, metric: str, in_bytes: bool) -> Chart | None:
    scale, y = scale_of(metric)
    size, unit = _unit(groups) if in_bytes else (1.0, "")
    x = f"sent so far, up and down ({unit})" if in_bytes else "round"
    rows: list[list[Any]] = []
    ends, notes, spread_over = [], set(), 1
    for label, runs in [*groups.items()][:MOST_LINES]:
        rounds, middle, spread, num_runs = mean_curve(runs, metric, who)
        if not rounds or (in_bytes and not size):
            continue
        across = mean_bytes(runs, rounds) / size if in_bytes else np.array(rounds) + 1  # readers count from 1
        half = np.zeros(len(rounds)) if spread is None else spread
        points, note = thinned([*zip(across, middle * scale, half * scale, strict=True)])
        rows += [[label, *map(tidy, (at, value, value - wide, value + wide))] for at, value, wide in points]
        notes.add(note)
        spread_over = max(spread_over, num_runs)
        ends.append(f"{label} ends at {human_metric(float(middle[-1]), metric)}")
    if not rows:
        return None
    band = "± 1 deviation over seeds" if spread_over > 1 else ""
    kind = {"global": "global", "clients-mean": "personalised", "received-mean": "received"}.get(who, who)
    about = f"{y.capitalize()} over {'bytes' if in_bytes else 'rounds'}: {_few(ends)}."
    if band:
        about += f" Lines are means over {spread_over} seeds; bands are {band}."
    places = 1 if metric == "accuracy" else 3
    spec = lines(x, y, "method", num_series=len(ends), band=band, whole=not in_bytes, places=places)
    columns = {"series": "method", "x": x, "y": y, "low": "low", "high": "high"}
    if not band:
        rows, columns = [row[:3] for row in rows], {key: columns[key] for key in ("series", "x", "y")}
    left = [*sorted(notes - {""}), *_lines_left(len(groups), "methods")]
    name = f"{kind}-over-{'bytes' if in_bytes else 'rounds'}"
    return Chart(
        name, f"{WHO[who]}, over {'bytes' if in_bytes else 'rounds'}", about, spec, columns, rows, " ".join(left)
    )


def extremes(groups: Groups, metric: str) -> Chart | None:
    """The mean over clients with the worst and the best client of each round, of each label's first run."""
    scale, y = scale_of(metric)
    worst, best = (max, min) if metric in LOWER_IS_BETTER else (min, max)
    rows: list[list[Any]] = []
    ends, notes = [], set()
    for label, runs in [*groups.items()][:MOST_LINES]:
        found, names = [], client_names(runs[0]) if runs else {}
        for line in runs[0].rounds if runs else ():
            own = (line.get("evaluation") or {}).get("clients") or {}
            known = {who: float(one[metric]) for who, one in own.items() if one.get(metric) is not None}
            if len(known) > 1:
                values = [scale * value for value in known.values()]
                found.append((int(line["round"]) + 1, float(np.mean(values)), min(values), max(values)))
                last = known
        points, note = thinned(found)
        notes.add(note)
        rows += [[label, at, *map(tidy, numbers)] for at, *numbers in points]
        if found:
            both = [pick(last, key=lambda who: last[who]) for pick in (worst, best)]
            low, high = (f"{names.get(int(who), who)} ({human_metric(last[who], metric)})" for who in both)
            ends.append(f"{label} ends with client {low} as the worst and client {high} as the best")
    if not rows:
        return None
    about = f"{y.capitalize()} of clients on their own test sets; bands reach from the worst client to the best. "
    columns = {"series": "method", "x": "round", "y": f"mean {y}", "low": "lowest client", "high": "highest client"}
    places = 1 if metric == "accuracy" else 3
    spec = lines("round", y, "method", num_series=len(ends), band="clients", places=places)
    title = "Worst and best client of each round (first seed)"
    return Chart("worst-and-best-client", title, about + _few(ends) + ".", spec, columns, rows, " ".join(notes).strip())


def of_groups(groups: Groups, metric: str) -> Chart | None:
    """The score of each group's model over rounds, of each label's first run, and that of a server's own model."""
    scale, y = scale_of(metric)
    rows: list[list[Any]] = []
    names, notes = [], set()
    for label, runs in groups.items():
        for owner in owner_labels(runs[0]) if runs else ():
            found = {who: group_curve(runs[0], owner, metric, who) for who in ("global", "clients")}
            rounds, values = found["global"] if found["global"][0] else found["clients"]
            if not rounds:
                continue
            name = owner if len(groups) == 1 else f"{label}: {owner}"
            names.append(name)
            points, note = thinned([*zip(rounds, values, strict=True)])
            notes.add(note)
            if len(names) <= MOST_LINES:
                rows += [[name, at + 1, tidy(value * scale)] for at, value in points]
    if not rows:
        return None
    words = "a group has, or the mean of its clients on their own test sets where it has none"
    about = f"{y.capitalize()} over rounds of the model that {words}: {_few(names)}."
    if any(name.endswith(SERVER) for name in names):
        about += " The server's own model is among them."
    columns = {"series": "group", "x": "round", "y": y}
    left = " ".join([*sorted(notes - {""}), *_lines_left(len(names), "groups")])
    spec = lines("round", y, "group", places=1 if metric == "accuracy" else 3)
    return Chart("groups-over-rounds", "Each group over rounds (first seed)", about, spec, columns, rows, left)


def traffic(run: Run, label: str, name: str) -> Chart | None:
    """The bytes that all clients sent and received in each round, by exchange; None where nothing was sent."""
    found = {key: series for key, series in exchange_bytes(run).items() if any(series[1])}
    most = max((size for _, sizes in found.values() for size in sizes), default=0)
    if not most:
        return None
    size, unit = next((size, unit) for size, unit in BYTE_UNITS if most >= size)
    rows, notes = [], set()
    for (exchange, way), (rounds, sizes) in [*found.items()][:MOST_LINES]:
        points, note = thinned([*zip(rounds, sizes, strict=True)])
        notes.add(note)
        rows += [[f"{exchange}, {way}", at + 1, tidy(own / size)] for at, own in points]
    totals = [f"{exchange}, {way}: {human_bytes(sum(sizes))}" for (exchange, way), (_, sizes) in found.items()]
    y = f"sent in a round, all clients ({unit})"
    about = f"Bytes of each round by exchange, down to the clients and up to the server. In all {_few(totals)}."
    columns = {"series": "exchange", "x": "round", "y": y}
    title = f"Communication of each round: {label}"
    spec = lines("round", y, "exchange", places=2, zero=True)
    return Chart(f"bytes-{name}", title, about, spec, columns, rows, " ".join(notes).strip())


def spent(groups: Groups) -> Chart | None:
    """The epsilon spent over rounds, of each label's first run; None without differential privacy."""
    rows: list[list[Any]] = []
    ends, notes = [], set()
    for label, runs in [*groups.items()][:MOST_LINES]:
        kept = [(int(line["round"]) + 1, line.get("privacy") or {}) for line in (runs[0].rounds if runs else ())]
        curves = {
            f"{label}": [(at, own.get("epsilon_known_cohorts", own.get("epsilon"))) for at, own in kept],
            f"{label}, if cohorts stay secret": [(at, own.get("epsilon_secret_cohorts")) for at, own in kept],
        }
        for name, points in curves.items():
            known, note = thinned([(at, value) for at, value in points if value is not None])
            notes.add(note)
            rows += [[name, at, tidy(value)] for at, value in known]
            if known:
                ends.append(f"{name} has spent {known[-1][1]:.2f}")
    if not rows:
        return None
    about = f"Epsilon over rounds; smaller is more private. {_few(ends)}."
    columns = {"series": "method", "x": "round", "y": "epsilon"}
    spec = lines("round", "epsilon", "method", places=2, zero=True)
    return Chart("privacy-over-rounds", "Privacy spent (epsilon)", about, spec, columns, rows, " ".join(notes).strip())


def main_charts(groups: Groups, metric: str) -> Iterator[Chart]:
    """Yield the charts of scores that the runs have measured."""
    for who in ("global", "clients-mean", "received-mean"):
        for drawn in (over_rounds(groups, who, metric), over_bytes(groups, who, metric)):
            if drawn is not None:
                yield drawn
    if (drawn := extremes(groups, metric)) is not None:
        yield drawn


def _unit(groups: Groups) -> tuple[float, str]:
    """The unit of the largest cost; 0 where nothing was sent."""
    most = max(
        (up[-1] + down[-1] for runs in groups.values() for _, up, down in map(cumulative_bytes, runs)), default=0
    )
    return next(((size, unit) for size, unit in BYTE_UNITS if most >= size), (0.0, "B"))


def _few(words: Sequence[str]) -> str:
    more = [f"and {len(words) - _NAMED} more"] if len(words) > _NAMED else []
    return "; ".join([*words[:_NAMED], *more])


def _lines_left(count: int, what: str) -> list[str]:
    return [f"The first {MOST_LINES} of {count:,} {what} are drawn."] if count > MOST_LINES else []
