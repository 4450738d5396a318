"""The columns of tables: titles, and the text of each in a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def human_bytes(count: float) -> str:
    """Format a number of bytes with decimal units: ``1.2 MB`` for 1,234,567."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    units = ("KB", "MB", "GB", "TB", "PB")
    power = 0
    value = count / 1000
    while abs(round(value, 1)) >= 1000 and power < len(units) - 1:  # rounded, so that 999,999 is 1.0 MB
        value, power = value / 1000, power + 1
    return f"{value:.1f} {units[power]}"


def human_metric(value: float | None, metric: str, spread: float | None = None, sign: bool = False) -> str:
    """Format a metric: ``81.2 ± 0.9`` (per cent) for an accuracy, three decimals for others, ``-`` for None."""
    if value is None:
        return "-"
    scale, places = (100, 1) if metric == "accuracy" else (1, 3)
    text = f"{value * scale:{'+' if sign else ''}.{places}f}"
    return text if spread is None else f"{text} ± {spread * scale:.{places}f}"


def _metric_column(title: str, measure: str) -> Column:
    return title, lambda row: human_metric(row[measure], row["metric"], row.get(f"{measure}_deviation"))


_FINAL: tuple[Column, ...] = (
    _metric_column("final model", "final"),
    _metric_column("clients' final", "final_personalised"),
)
MEASURED: tuple[Column, ...] = (
    _metric_column("global", "global"),
    _metric_column("personalised", "personalised"),
    _metric_column("by examples", "personalised_weighted"),
    _metric_column("worst client", "worst_client"),
    ("client spread", lambda row: human_metric(row["client_spread"], row["metric"])),
    _metric_column("as received", "received"),
)
_COST: tuple[Column, ...] = (
    ("up", lambda row: human_bytes(row["bytes_up"])),
    ("down", lambda row: human_bytes(row["bytes_down"])),
    ("seconds", lambda row: f"{row['seconds']:.1f}"),
    ("s/round", lambda row: f"{row['seconds_per_round']:.2f}"),
    ("dropped", lambda row: str(row["dropped"])),
    ("messages", lambda row: "-" if row["messages"] is None else f"{row['messages']:.0f}"),
    ("epsilon", lambda row: "-" if row["epsilon"] is None else f"{row['epsilon']:.2f}"),
)
SUMMARY: tuple[Column, ...] = (
    ("run", lambda row: str(row["name"])),
    ("method", lambda row: str(row["method"])),
    ("seed", lambda row: "-" if row["seed"] is None else str(row["seed"])),
    ("rounds", lambda row: f"{row['rounds']}{'' if row['status'] == 'finished' else ' (unfinished)'}"),
    *_FINAL,
    *MEASURED,
    ("lowest", lambda row: human_metric(row["lowest_client"], row["metric"])),
    *_COST,
)
COMPARE: tuple[Column, ...] = (
    ("method", lambda row: str(row["label"])),
    ("seeds", lambda row: str(row["seeds"])),
    *_FINAL,
    *MEASURED[:1],
    ("within run", lambda row: human_metric(row["global_within"], row["metric"])),
    *MEASURED[1:],
    *_COST,
)
GROUPED: tuple[Column, ...] = (
    COMPARE[0],
    ("group", lambda row: str(row["group"])),
    COMPARE[1],
    *_FINAL,
    *MEASURED[:2],
)
TAUGHT: tuple[Column, ...] = (
    COMPARE[0],
    ("student", lambda row: str(row["student"])),
    COMPARE[1],
    *(
        (title, lambda row, key=key: "-" if row[key] is None else f"{row[key]:.2f}")
        for title, key in (
            ("taken", "taken"),
            ("right of offered", "offered_right"),
            ("right of taken", "taken_right"),
            ("reward error", "label_error"),
            ("reward correlation", "label_correlation"),
        )
    ),
)
JOINED: tuple[Column, ...] = (
    *COMPARE[:2],
    *(
        (title, lambda row, key=key: human_metric(row[key], "accuracy", row[f"{key}_deviation"]))
        for title, key in (
            ("accuracy", "accuracy"),
            ("worst class", "worst_class"),
            ("seen", "seen"),
            ("unseen", "unseen"),
            ("harmonic mean", "harmonic"),
        )
    ),
)
MISSING: tuple[Column, ...] = (
    COMPARE[0],
    ("without", lambda row: str(row["without"])),
    COMPARE[1],
    ("accuracy", lambda row: human_metric(row["accuracy"], "accuracy", row["accuracy_deviation"])),
    ("lost", lambda row: human_metric(row["lost"], "accuracy")),
)
PAIRED: tuple[Column, ...] = (
    ("method", lambda row: str(row["label"])),
    ("against", lambda row: str(row["reference"])),
    ("seeds", lambda row: str(row["seeds"])),
    ("difference", lambda row: human_metric(row["difference"], row["metric"], sign=True)),
    ("standard error", lambda row: human_metric(row["standard_error"], row["metric"])),
    ("verdict", lambda row: str(row["verdict"])),
)
