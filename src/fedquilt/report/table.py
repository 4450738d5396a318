"""Tables of one run per row, and of several methods side by side over several seeds.

Every deviation is the sample standard deviation (n - 1), and None for fewer than two values. Accuracies are fractions
in the rows and per cent in the text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedquilt.core.errors import RunError
from fedquilt.report.columns import Column, filled
from fedquilt.report.columns import Row as Row
from fedquilt.report.columns import human_bytes as human_bytes
from fedquilt.report.columns import human_metric as human_metric
from fedquilt.report.layout import laid_out
from fedquilt.report.runs import Run, all_bytes, dropped, messages, privacy
from fedquilt.report.scores import LOWER_IS_BETTER, curve, final_score, main_metric, window

Groups = Mapping[str, Sequence[Run]]

MEASURES = {  # the key of a row -> the curve (``scores.WHO``) that it averages
    "global": "global",
    "personalised": "clients-mean",
    "personalised_weighted": "clients-weighted",
    "worst_client": "clients-worst",
    "client_spread": "clients-deviation",
    "received": "received-mean",
}
FINAL = {"final": "global", "final_personalised": "clients-mean"}  # scores of the final model


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None for no values."""
    return float(np.mean(values)) if len(values) else None


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def summary(run: Run, last: int | None = None, metric: str | None = None) -> Row:
    """Summarise a run as one row: means over its last evaluated rounds, bytes, seconds, dropped replies.

    All figures of a run in commands, reports and comparisons come from here. ``last`` is the number of evaluated rounds
    to average, by default ``evaluation.last`` of the run file; ``window`` in the row is how many there were.

    The keys of ``MEASURES`` are means of the curves described in ``scores.curve``, with a ``_deviation`` over the same
    rounds. ``lowest_client`` is the worst value of a single client in these rounds. ``final`` and
    ``final_personalised`` are the global and the personalised score of the final model, which is exported. ``epsilon``
    is the epsilon spent by the last round (infinite without noise, None without differential privacy). ``seconds`` is
    the sum over rounds, without the time to set up. Values that the run did not measure are None.

    Raises
    ------
    ConfigError
        if ``last`` is below 1.
    """
    last = window(run, last)
    metric = metric or main_metric(run)
    row: Row = {
        "name": run.name,
        "method": run.method,
        "seed": run.seed,
        "status": "finished" if run.finished else "unfinished",
        "rounds": len(run.rounds),
        "metric": metric,
    }
    for measure, who in MEASURES.items():
        values = curve(run, metric, who)[1][-last:]
        row[measure], row[f"{measure}_deviation"] = mean(values), deviation(values)
    row["window"] = max((len(curve(run, metric, who)[1][-last:]) for who in MEASURES.values()), default=0)
    row |= {measure: final_score(run, metric, who) for measure, who in FINAL.items()}
    worst = curve(run, metric, MEASURES["worst_client"])[1][-last:]
    row["lowest_client"] = (max if metric in LOWER_IS_BETTER else min)(worst, default=None)
    up, down = all_bytes(run)
    seconds = sum(float(line.get("seconds") or 0.0) for line in run.rounds)
    row |= {"bytes_up": up, "bytes_down": down}
    row |= {"seconds": seconds, "seconds_per_round": seconds / len(run.rounds), "dropped": len(dropped(run))}
    row |= {"messages": sum(messages(run).values()) or None}
    return row | {"epsilon": epsilon_of(run)}


def epsilon_of(run: Run) -> float | None:
    """Return the epsilon that a run has spent; None without differential privacy."""
    spent = privacy(run)
    return None if spent is None else math.inf if spent["epsilon"] is None else float(spent["epsilon"])


def compare_rows(groups: Groups, last: int | None = None, metric: str | None = None) -> list[Row]:
    """Return one row per label over its seeds.

    Each measure of ``summary`` is the mean over seeds of the run's last-k mean; ``_deviation`` is the deviation of
    these over seeds, ``_within`` the mean over seeds of the deviation inside a run over its last k evaluated rounds.
    Bytes, seconds and messages are means over seeds, ``epsilon`` is the maximum, ``dropped`` and ``unfinished`` are
    sums.

    Raises
    ------
    RunError
        if a label has no run, or two runs of one seed.
    """
    metric = metric or shared_metric(groups)
    rows = []
    for label, runs in groups.items():
        parts = [summary(run, last, metric) for run in by_seed(label, runs).values()]
        row: Row = {"label": label, "seeds": len(parts), "rounds": min(part["rounds"] for part in parts)}
        row |= {"unfinished": sum(part["status"] == "unfinished" for part in parts), "metric": metric}
        for measure in MEASURES:
            values = [part[measure] for part in parts if part[measure] is not None]
            within = [part[f"{measure}_deviation"] for part in parts if part[f"{measure}_deviation"] is not None]
            row[measure], row[f"{measure}_deviation"] = mean(values), deviation(values)
            row[f"{measure}_within"] = mean(within)
        for measure in FINAL:
            values = [part[measure] for part in parts if part[measure] is not None]
            row[measure], row[f"{measure}_deviation"] = mean(values), deviation(values)
        row["window"] = max(part["window"] for part in parts)
        row |= {key: mean([part[key] for part in parts]) for key in ("bytes_up", "bytes_down")}
        row |= {key: mean([part[key] for part in parts]) for key in ("seconds", "seconds_per_round")}
        row["messages"] = mean([part["messages"] for part in parts if part["messages"] is not None])
        epsilons = [part["epsilon"] for part in parts if part["epsilon"] is not None]
        row |= {"dropped": sum(part["dropped"] for part in parts), "epsilon": max(epsilons, default=None)}
        rows.append(row)
    return rows


def short_names(groups: Groups) -> dict[str, str]:
    """Return a name for files by label: lower-case letters, digits and hyphens, another for each label."""
    names: dict[str, str] = {}
    for label in groups:
        short = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "run"
        while short in names.values():
            short += "-again"
        names[label] = short
    return names


def by_seed(label: str, runs: Sequence[Run]) -> dict[int | None, Run]:
    """Return the runs of a label by seed; RunError if there is none, or two of one seed."""
    if not runs:
        raise RunError(f"{label}: no run to report. Run it first, or leave the label out.")
    found: dict[int | None, Run] = {}
    for run in runs:
        if run.seed in found:
            raise RunError(
                f"{label}: two runs have seed {run.seed} ({found[run.seed].folder} and {run.folder}). Give one of them."
            )
        found[run.seed] = run
    return found


def shared_metric(groups: Groups) -> str:
    """Return the main metric of the first run."""
    return next((main_metric(run) for runs in groups.values() for run in runs), "accuracy")


def cells(rows: Sequence[Row], columns: Sequence[Column] | None = None) -> list[list[str]]:
    """Return the header and one line of texts per row, without columns that have no values.

    ``columns`` are those of the rows' kind of table by default.
    """
    kept = filled(rows, columns)
    return [[column.title for column in kept], *([column.show(row) for column in kept] for row in rows)] if rows else []


def as_text(rows: Sequence[Row], width: int | None = None, columns: Sequence[Column] | None = None) -> str:
    """Format the rows as plain text in columns, of at most ``width`` characters if given."""
    return laid_out(cells(rows, columns), width)


def as_markdown(rows: Sequence[Row], columns: Sequence[Column] | None = None) -> str:
    """Format the rows as a Markdown table."""
    table = [[cell.replace("|", "\\|") for cell in line] for line in cells(rows, columns)]
    if not table:
        return ""
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(rows: Sequence[Row]) -> str:
    """Format the rows as JSON; NaN and infinities become null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps([{key: plain(value) for key, value in row.items()} for row in rows], indent=2, allow_nan=False)
