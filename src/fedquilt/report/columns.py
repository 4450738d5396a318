"""The columns of tables: titles, the text of each in a row, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]


class Column(NamedTuple):
    """A column: its title, its text in a row, and what the title means where it needs saying.

    ``averaged``: over the last evaluated rounds, so the number of them goes with the title.
    """

    title: str
    show: Callable[[Row], str]
    meaning: str = ""
    averaged: bool = False


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


def counted(count: int, what: str) -> str:
    """A number of things in words: ``1 client``, ``2,000 clients``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def human_metric(value: float | None, metric: str, spread: float | None = None, sign: bool = False) -> str:
    """Format a metric: ``81.2 ± 0.9`` (per cent) for an accuracy, three decimals for others, ``-`` for None."""
    if value is None:
        return "-"
    scale, places = (100, 1) if metric == "accuracy" else (1, 3)
    text = f"{value * scale:{'+' if sign else ''}.{places}f}"
    return text if spread is None else f"{text} ± {spread * scale:.{places}f}"


def _score(title: str, measure: str, meaning: str = "", *, averaged: bool = False, spread: bool = True) -> Column:
    """The column of a measure, with its deviation if there is one."""

    def show(row: Row) -> str:
        return human_metric(row[measure], row["metric"], row.get(f"{measure}_deviation") if spread else None)

    return Column(title, show, meaning, averaged)


def _accuracy(key: str) -> Callable[[Row], str]:
    return lambda row: human_metric(row[key], "accuracy", row[f"{key}_deviation"])


def _number(key: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[key] is None else f"{row[key]:.2f}"


_METHOD = Column("method", lambda row: str(row["label"]))
_SEEDS = Column("seeds", lambda row: str(row["seeds"]))
_GLOBAL = (
    _score("global, final", "final"),
    _score("global", "global", averaged=True),
)
_ROUNDS = _score(
    "std over rounds", "global_within", "standard deviation over the last evaluated rounds of a run", spread=False
)
_CLIENTS = (
    _score("client mean, final", "final_personalised"),
    _score("client mean", "personalised", averaged=True),
)
_OF_CLIENTS = (
    _score("weighted by rows", "personalised_weighted", "mean over clients, weighted by their numbers of test rows"),
    _score("worst client", "worst_client", "the client with the worst score of each round"),
    _score("std over clients", "client_spread", "standard deviation of the clients' scores", spread=False),
    _score("before training", "received", "the model as clients receive it in a round, on their own test rows, mean"),
)
_COST = (
    Column("upload", lambda row: human_bytes(row["bytes_up"]), "what all clients of a run sent"),
    Column("download", lambda row: human_bytes(row["bytes_down"]), "what all clients of a run were sent"),
    Column("seconds", lambda row: f"{row['seconds']:.1f}", "of all rounds, without the time to set up"),
    Column("s per round", lambda row: f"{row['seconds_per_round']:.2f}"),
    Column("dropped", lambda row: str(row["dropped"]), "replies that did not count: failed, late or not finite"),
    Column("messages", lambda row: "-" if row["messages"] is None else f"{row['messages']:.0f}"),
    Column(
        "epsilon",
        lambda row: "-" if row["epsilon"] is None else f"{row['epsilon']:.2f}",
        "differential privacy spent, at the delta of privacy.delta; the largest over seeds",
    ),
)
SUMMARY = (
    Column("run", lambda row: str(row["name"])),
    Column("method", lambda row: str(row["method"])),
    Column("seed", lambda row: "-" if row["seed"] is None else str(row["seed"])),
    Column("rounds", lambda row: f"{row['rounds']}{'' if row['status'] == 'finished' else ' (unfinished)'}"),
    *_GLOBAL,
    *_CLIENTS,
    *_OF_CLIENTS,
    _score("worst client and round", "lowest_client"),
    *_COST,
)
COMPARED = (
    ("of the global model on the common test set", (_METHOD, _SEEDS), (*_GLOBAL, _ROUNDS)),
    ("of the clients' models on their own test rows", (_METHOD, _SEEDS), (*_CLIENTS, *_OF_CLIENTS)),
    ("", (_METHOD,), _COST),
)
"""The tables of a comparison: whose scores they show ("" for the costs), columns that name a row, and the others."""
COMPARE = (_METHOD, _SEEDS, *_GLOBAL, _ROUNDS, *_CLIENTS, *_OF_CLIENTS, *_COST)
GROUPED = (_METHOD, Column("group", lambda row: str(row["group"])), _SEEDS, *_GLOBAL, *_CLIENTS)
TAUGHT = (
    _METHOD,
    Column("student", lambda row: str(row["student"])),
    _SEEDS,
    *(
        Column(title, _number(key), meaning)
        for title, key, meaning in (
            ("taken", "taken", "share of the offered paths that the student takes"),
            ("right of offered", "offered_right", "share of right ones among the offered paths"),
            ("right of taken", "taken_right", "share of right ones among those that it takes"),
            ("reward error", "label_error", ""),
            ("reward correlation", "label_correlation", ""),
        )
    ),
)
JOINED = (
    _METHOD,
    _SEEDS,
    *(
        Column(title, _accuracy(key))
        for title, key in (
            ("accuracy", "accuracy"),
            ("worst class", "worst_class"),
            ("seen", "seen"),
            ("unseen", "unseen"),
            ("harmonic mean", "harmonic"),
        )
    ),
)
MISSING = (
    _METHOD,
    Column("without", lambda row: str(row["without"])),
    _SEEDS,
    Column("accuracy", _accuracy("accuracy")),
    Column("lost", lambda row: human_metric(row["lost"], "accuracy")),
)
KEPT = (
    _METHOD,
    Column("party", lambda row: str(row["party"])),
    Column("kept", lambda row: human_metric(row["kept"], "accuracy"), "mean over classes, rounds and seeds"),
    Column("least, of class", lambda row: f"{human_metric(row['least'][1], 'accuracy')}, {row['least'][0]}"),
    Column("most, of class", lambda row: f"{human_metric(row['most'][1], 'accuracy')}, {row['most'][0]}"),
)
PAIRED = (
    _METHOD,
    Column("against", lambda row: str(row["reference"])),
    _SEEDS,
    Column("difference", lambda row: human_metric(row["difference"], row["metric"], sign=True)),
    Column("standard error", lambda row: human_metric(row["standard_error"], row["metric"])),
    Column("verdict", lambda row: str(row["verdict"])),
)

_KINDS = {"verdict": PAIRED, "group": GROUPED, "student": TAUGHT, "without": MISSING, "harmonic": JOINED}
_KINDS |= {"kept": KEPT, "label": COMPARE}


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns of the kind of table that rows belong to, by the keys of the first."""
    return next((kind for key, kind in _KINDS.items() if key in rows[0]), SUMMARY)


def filled(rows: Sequence[Row], columns: Sequence[Column] | None = None) -> list[Column]:
    """The columns that have a value in some row, with titles that name the rounds that are averaged."""
    spans = sorted({row["window"] for row in rows if row.get("window")})
    span = f", last {spans[0]}" if len(spans) == 1 else f", last {spans[0]}-{spans[-1]}" if spans else ""
    columns = (columns_of(rows) if columns is None else columns) if rows else ()
    kept = [column for column in columns if any(column.show(row) != "-" for row in rows)]
    return [column._replace(title=column.title + span) if column.averaged else column for column in kept]
