"""The sections of the page, in order: each has a heading and parts, which are charts or finished HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

from fedquilt.report.cards import (
    MOST_SEEDS,
    SCORES,
    Client,
    card_html,
    chosen,
    clients_of_run,
    shared_charts,
    table_of_clients,
)
from fedquilt.report.caveats import notes, spans
from fedquilt.report.charts import Chart
from fedquilt.report.columns import COMPARED, filled
from fedquilt.report.comparison import COST, legend, meaning, named, paired
from fedquilt.report.groups import group_rows
from fedquilt.report.html import facts_html, table_html
from fedquilt.report.lesson_charts import lesson_charts
from fedquilt.report.lessons import LESSONS, lesson_rows
from fedquilt.report.map_charts import (
    agreement_chart,
    alignment_charts,
    alike_chart,
    allocation_chart,
    gate_chart,
    holdings_chart,
    kept_chart,
    partition_chart,
    probability_charts,
)
from fedquilt.report.paired_differences import HONEST, alone
from fedquilt.report.parties import of_parties
from fedquilt.report.runs import Run, client_names, dropped
from fedquilt.report.score_charts import main_charts, of_groups, spent, traffic
from fedquilt.report.scores import LOWER_IS_BETTER, main_metric
from fedquilt.report.table import Groups, Row, cells, compare_rows, short_names, summary

Part = str | Chart

First = tuple[Run, str, str]
"""The first run of a label, the label, and its name in the names of files."""

MOST_LOST = 500
"""The largest number of lines of the table of dropped replies."""


class Section(NamedTuple):
    """A part of the page: its anchor, its heading, and what is in it."""

    id: str
    heading: str
    parts: Sequence[Part]


def sections(groups: Groups, last: int | None, references: Sequence[str]) -> Iterator[tuple[Section, Sequence[Chart]]]:
    """Yield the sections that have something in them, each with the charts that its finished HTML refers to."""
    runs = [run for members in groups.values() for run in members]
    metric = main_metric(runs[0])
    names = short_names(groups)
    first = [(members[0], label, names[label]) for label, members in groups.items() if members]
    people, drawn = _clients(groups, metric)
    found = [
        Section("results", "Results", [*_results(groups, runs, metric, last)]),
        Section("paired", "Paired differences", [*_paired(groups, references, last)]),
        Section("over-time", "Over rounds and bytes", [*main_charts(groups, metric)]),
        Section("groups", "Groups", [*_groups(groups, metric, last)]),
        Section("parties", "Parties", [*_parties(groups, first, last)]),
        Section("clients", "Clients", people),
        Section("data", "Who holds which data", [*_given(partition_chart(runs[0]))]),
        Section("layers", "Who trained what", [*_layers(first)]),
        Section("alignment", "Conflicts and cosines", [part for one in first for part in alignment_charts(*one)]),
        Section("agreement", "Agreement of the models", [*_each(first, agreement_chart)]),
        Section("lessons", "Samples chosen", [*_lessons(groups, first)]),
        Section("communication", "Communication", [*_each(first, traffic)]),
        Section("privacy", "Privacy spent", [*_privacy(groups)]),
        Section("dropped", "Dropped replies", [*_lost(groups)]),
    ]
    yield from ((one, drawn if one.id == "clients" else []) for one in found if one.parts)


def _given(*charts: Chart | None) -> Iterator[Chart]:
    yield from (chart for chart in charts if chart is not None)


def _each(first: Sequence[First], draw: Any) -> Iterator[Chart]:
    yield from _given(*(draw(*one) for one in first))


def _table(rows: Sequence[Row], caption: str) -> str:
    return table_html(cells(rows), caption)


def _words(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _results(groups: Groups, runs: Sequence[Run], metric: str, last: int | None) -> Iterator[Part]:
    rows, each = compare_rows(groups, last), [summary(run, last) for run in runs]
    for whose, names, values in COMPARED:
        if filled(rows, values):
            caption = f"{named(metric)} {whose}" if whose else COST
            yield table_html(cells(rows, (*names, *values)), caption)
    inside = "In the table of runs, ± is the standard deviation over these rounds."
    yield f'<p class="note">{escape(f"{meaning(metric)} {inside}")}</p>'
    yield f'<details class="legend"><summary>What the columns mean</summary>{facts_html(legend(rows, each))}</details>'
    if remarks := notes(groups, last):
        yield f'<ul class="notes">{"".join(f"<li>{escape(remark)}</li>" for remark in remarks)}</ul>'
    yield _table(each, "Runs")


def _paired(groups: Groups, references: Sequence[str], last: int | None) -> Iterator[Part]:
    for what, rows in paired(groups, references, last):
        yield _table(rows, what)
    if references:
        yield from map(_words, (HONEST, *alone(groups, references)))


def _groups(groups: Groups, metric: str, last: int | None) -> Iterator[Part]:
    if rows := group_rows(groups, metric, last):
        yield _table(rows, "Group by group")
        yield from _given(of_groups(groups, metric))


def _parties(groups: Groups, first: Sequence[First], last: int | None) -> Iterator[Part]:
    for heading, rows in of_parties(groups, last):
        yield _table(rows, heading)
    yield from _given(*(holdings_chart(run) for run, _, _ in first[:1]))
    for one in first:
        yield from _given(gate_chart(*one), alike_chart(*one), kept_chart(*one))


def _layers(first: Sequence[First]) -> Iterator[Part]:
    for one in first:
        yield from _given(allocation_chart(*one))
        yield from probability_charts(*one)


def _lessons(groups: Groups, first: Sequence[First]) -> Iterator[Part]:
    if rows := lesson_rows(groups):
        yield _table(rows, LESSONS)
    for one in first:
        yield from lesson_charts(*one)


def _privacy(groups: Groups) -> Iterator[Part]:
    yield from _given(spent(groups))
    rows = [
        [label, str(run.seed), str(party), *(_epsilon(own.get(key)) for key in ("epsilon", "epsilon_of_a_row"))]
        for label, runs in groups.items()
        for run in runs[:1]
        for party, own in ((run.rounds[-1].get("disclosed") or {}).get("parties") or {}).items()
    ]
    if rows:
        head = ["method", "seed", "party", "epsilon of all that left it", "epsilon of one row"]
        yield table_html([head, *rows], "What the parties disclosed")


def _epsilon(value: float | None) -> str:
    return "no bound" if value is None else f"{value:.3g}"


def _clients(groups: Groups, metric: str) -> tuple[list[Part], list[Chart]]:
    """The cards of the clients of the first label and their table, and the charts that the cards share."""
    label, members = next((label, members) for label, members in groups.items() if members)
    runs = members[:MOST_SEEDS]
    everyone = [clients_of_run(run, metric, by_seed=len(runs) > 1) for run in runs]
    if not everyone[0]:
        return [], []
    by_run = [(run, chosen(own, metric)) for run, own in zip(runs, everyone, strict=True)]
    shown, drawn = [one for _, own in by_run for one in own], shared_charts(groups, by_run, metric)
    words = f"Clients of {label}, seed {runs[0].seed}."
    if len(runs) > 1:
        words = f"Clients of {label}, one seed at a time: choose it below."
    if len(members) > len(runs):
        words += f" The first {len(runs)} of {len(members)} seeds have cards."
    if len(groups) > 1 and any(chart.name == SCORES for chart in drawn):
        words += " Scores are drawn for every method that had the same partition of the data."
    if len(by_run[0][1]) < (count := len(everyone[0])):
        words += f" Of {count:,} clients the first have cards, and those that score worst and best."
    tools = "".join(f'<span class="tools" data-shared="{chart.name}">{escape(chart.title)}</span>' for chart in drawn)
    cards = "".join(card_html(one, metric, drawn) for one in shown)
    better = ' data-lower="yes"' if metric in LOWER_IS_BETTER else ""
    deck = f'<div class="cards"{better}>{cards}</div><p class="shared">{tools}</p>'
    table = table_of_clients([one for own in everyone for one in own], metric)
    below = f"<details><summary>All clients as a table</summary>{table}</details>"
    return [_words(words), _filter(shown), deck, below], drawn


def _filter(shown: Sequence[Client]) -> str:
    """The form that finds clients and puts them in order; with several seeds or groups, these are chosen."""
    seeds = [*dict.fromkeys(one.seed for one in shown if one.seed)]
    names = sorted({str(one.about.get("group")) for one in shown if one.about.get("group")})
    choices = _choice("Seed", seeds) if seeds else ""
    choices += _choice("Group", names, '<option value="">all</option>') if names else ""
    return (
        '<form class="filter" role="search" aria-label="Clients"><label>Find <input type="search" name="words" '
        f'placeholder="name, model, reason"></label>{choices}<label>Order <select name="order">'
        '<option value="id">number</option><option value="worst">worst score first</option>'
        '<option value="best">best score first</option></select></label>'
        f'<output aria-live="polite">{len(shown)} shown</output></form>'
    )


def _choice(label: str, values: Sequence[str], before: str = "") -> str:
    options = "".join(f"<option>{escape(value)}</option>" for value in values)
    return f'<label>{label} <select name="{label.lower()}">{before}{options}</select></label>'


def _lost(groups: Groups) -> Iterator[Part]:
    """Who was dropped and why: a line for each client and reason, then each reply."""
    found = [
        (label, run.seed, names.get(loss["client"], str(loss["client"])), str(loss["reason"]), loss)
        for label, runs in groups.items()
        for run in runs
        for names in [client_names(run)]
        for loss in dropped(run)
    ]
    if not found:
        return
    by_reason = sorted(found, key=lambda one: (one[0], str(one[1]), one[2], one[3]))
    why = [
        [*map(str, key), str(len(own)), spans([one[4]["round"] + 1 for one in own])]
        for key, same in groupby(by_reason, key=lambda one: one[:4])
        for own in [[*same]]
    ]
    yield _bounded(["method", "seed", "client", "reason", "replies", "rounds"], why, "Who was dropped, and why")
    each = [
        [label, str(seed), str(loss["round"] + 1), str(loss["exchange"]), name, reason]
        for label, seed, name, reason, loss in found
    ]
    replies = _bounded(["method", "seed", "round", "exchange", "client", "reason"], each, "Each dropped reply")
    yield f"<details><summary>Each dropped reply</summary>{replies}</details>"


def _bounded(head: list[str], lines: list[list[str]], caption: str) -> str:
    left = f"The first {MOST_LOST} of {len(lines):,} lines." if len(lines) > MOST_LOST else ""
    return table_html([head, *lines[:MOST_LOST]], caption, left)
