"""Charts of one run: who has what, who trained what, how groups and models agree, and what the parties learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedquilt.report.agreement import agreement_of, agreement_words
from fedquilt.report.charts import Chart, bars, bubbles, heat, lines
from fedquilt.report.columns import counted
from fedquilt.report.conflicts import alignments
from fedquilt.report.parties import ALIKE, GATE, holdings, kept_of, party_names, table_of
from fedquilt.report.runs import Run, allocation, budget_layers, client_names, client_table, layer_probabilities
from fedquilt.report.score_charts import thinned, tidy

MOST_CLIENTS = 100
"""The largest number of clients that a map has columns for."""

MOST_CLASSES = 100
"""The largest number of classes of a map, and of places whose agreement is drawn."""


def partition_chart(run: Run) -> Chart | None:
    """How many training rows of each class each client holds; None where a run disclosed none."""
    found = [client for client in client_table(run) if "train" in client]
    if not found:  # real sites do not disclose their rows
        return None
    names = client_names(run)
    shown, classes = found[:MOST_CLIENTS], [str(name) for name in run.partition.get("classes", ())]
    left = _left(len(found), MOST_CLIENTS, "clients", "The table of clients has more.")
    size = (len(shown), min(len(classes), MOST_CLASSES))
    total = f"{counted(len(found), 'client')} with {sum(len(client['train']) for client in found):,} training rows"
    if not classes:
        rows: list[list[Any]] = [[len(client["train"]), names[int(client["id"])]] for client in shown]
        spec = bars("training rows", "client", places=0, num_bars=len(rows))
        columns = {"x": "training rows", "y": "client"}
        return Chart("partition", "Training rows of each client", f"{total}.", spec, columns, rows, left)
    kept = classes[:MOST_CLASSES]
    rows = [
        [names[int(client["id"])], name, int((client.get("labels") or {}).get(name, 0))]
        for name in kept  # with zeros, so that both axes have the order of the record
        for client in shown
    ]
    left = " ".join(filter(None, [left, _left(len(classes), MOST_CLASSES, "classes")]))
    about = f"{total} of {len(classes):,} classes. The area of a circle is the number of rows of a class at a client."
    spec = bubbles("client", "class", "rows", size=size)
    columns = {"x": "client", "y": "class", "value": "rows"}
    return Chart("partition", "Rows by client and class", about, spec, columns, rows, left)


def allocation_chart(run: Run, label: str, name: str) -> Chart | None:
    """How often each client trained each layer, clients sorted by budget; None where no layers were allocated."""
    ids, counts = allocation(run)
    if not counts.any():
        return None
    budgets = {int(client["id"]): budget_layers(client) for client in client_table(run)}
    order = sorted(range(len(ids)), key=lambda at: (budgets.get(ids[at]) or 0, ids[at]))
    names = client_names(run)
    shown = order if len(order) <= MOST_CLIENTS else [order[at] for at in _spaced(len(order))]
    rows = [
        [names.get(ids[at], str(ids[at])), layer, int(counts[layer, at])]
        for at in shown
        for layer in range(len(counts))
    ]
    groups = sorted({budget for budget in budgets.values() if budget is not None})
    about = (
        f"Rounds in which each of {len(ids):,} clients trained each of {len(counts)} layers (0 is nearest the input)."
    )
    if groups:
        about += f" Clients stand in the order of their budgets, {groups[0]} to {groups[-1]} layers."
    spec = heat("client, by budget", "layer", "rounds trained", size=(len(shown), len(counts)), upward=True)
    columns = {"x": "client", "y": "layer", "value": "rounds trained"}
    left = "" if shown is order else f"{len(shown)} of {len(order):,} clients are shown, evenly spaced by budget."
    return Chart(f"allocation-{name}", f"Who trained which layer: {label}", about, spec, columns, rows, left)


def probability_charts(run: Run, label: str, name: str) -> Iterator[Chart]:
    """Yield each layer's probability of being drawn first, over rounds, of each group that recorded them."""
    for number, (group, (rounds, values)) in enumerate(layer_probabilities(run).items()):
        places, note = thinned(range(len(rounds)))
        rows = [[rounds[at] + 1, layer, tidy(values[layer, at])] for at in places for layer in range(len(values))]
        last = values[:, -1]
        about = "Probability of being drawn first (sum 1 per round). "
        about += f"At the end layer {int(np.nanargmax(last))} has the largest, {np.nanmax(last):.3f}."
        title = f"Probability of being drawn first: {label}{f', {group}' if group else ''}"
        size = (len(places), len(values))
        spec = heat("round", "layer", "probability of being drawn first", size=size, places=3, upward=True)
        columns = {"x": "round", "y": "layer", "value": "probability of being drawn first"}
        yield Chart(f"probabilities-{name}{f'-{number}' if number else ''}", title, about, spec, columns, rows, note)


def alignment_charts(run: Run, label: str, name: str) -> Iterator[Chart]:
    """Yield conflicts over rounds, and the mean cosines between groups."""
    found = alignments(run)
    if not found:
        return
    rows, notes = [], set()
    for architecture, one in found.items():
        points, note = thinned([*zip(one.rounds, one.conflicts.tolist(), strict=True)])
        notes.add(note)
        rows += [[architecture or label, at + 1, count] for at, count in points]
    most = max(int(one.conflicts.max()) for one in found.values())
    about = f"Pairs of groups whose updates conflict, over all parts; at most {most} in a round."
    spec = lines("round", "conflicts", "architecture", places=0, zero=True)
    columns = {"series": "architecture", "x": "round", "y": "conflicts"}
    left = " ".join(notes).strip()
    yield Chart(f"alignment-{name}", f"Conflicts between groups: {label}", about, spec, columns, rows, left)
    for number, (architecture, one) in enumerate(found.items()):
        if one.cosines is not None:
            title = f"Mean cosine of two groups' updates: {label}{f', {architecture}' if architecture else ''}"
            yield _square(f"cosines-{name}-{number}", title, one.names, one.cosines, "group")


def agreement_chart(run: Run, label: str, name: str) -> Chart | None:
    """How far the models agree at each place of the common coordinates; None where it was not recorded."""
    found = agreement_of(run)
    if not found:
        return None
    kept = [*found.items()][:MOST_CLASSES]
    x = "mean correlation of held-out coordinates (unrelated models: 0)"
    about = agreement_words(run)
    spec = bars(x, "place", num_bars=len(kept), highest=1.0)
    rows = [[tidy(value), place] for place, value in kept]
    left = _left(len(found), MOST_CLASSES, "places")
    title = f"Agreement of the models by place: {label}"
    return Chart(f"agreement-{name}", title, about[:1].upper() + about[1:], spec, {"x": x, "y": "place"}, rows, left)


def holdings_chart(run: Run) -> Chart | None:
    """How many rows of each class all parties hold, and each party alone; None for runs that are not vertical."""
    found = holdings(run)
    if found is None:
        return None
    tables = {"all (aligned)": found.aligned, **{f"{name} alone": own for name, own in found.own.items()}}
    kept = found.classes[:MOST_CLASSES]
    rows = [[one, name, int(counts.get(one, 0))] for name, counts in tables.items() for one in kept]
    totals = [f"{name} {sum(map(int, counts.values())):,}" for name, counts in tables.items()]
    about = f"Training rows by class: those that all parties hold, and each party's own. In all: {'; '.join(totals)}."
    spec = heat("class", "party", "rows", size=(len(kept), len(tables)))
    columns = {"x": "class", "y": "party", "value": "rows"}
    left = _left(len(found.classes), MOST_CLASSES, "classes")
    return Chart("parties", "Who holds which rows", about, spec, columns, rows, left)


def gate_chart(run: Run, label: str, name: str) -> Chart | None:
    """The mean weight of each party in the prediction of test rows, by their class; None without weights."""
    weights = table_of(run, GATE)
    if not weights:
        return None
    parties = [party for party in party_names(run) if party in weights][:MOST_CLIENTS]
    classes = [str(one) for one in run.partition.get("classes", ())][:MOST_CLASSES]
    rows = [[one, party, tidy(value)] for party in parties for one, value in zip(classes, weights[party], strict=False)]
    means = [f"{party} {np.nanmean(weights[party]):.2f}" for party in parties]
    about = f"How much each party counts in the prediction of test rows of each class. Means: {'; '.join(means)}."
    spec = heat("class", "party", "mean weight", size=(len(classes), len(parties)), places=2)
    columns = {"x": "class", "y": "party", "value": "mean weight"}
    return Chart(f"gate-{name}", f"Weight of each party by class: {label}", about, spec, columns, rows)


def alike_chart(run: Run, label: str, name: str) -> Chart | None:
    """The cosines of class prototypes, means over the parties that have learned both classes; None without any."""
    cosines = table_of(run, ALIKE)
    if not cosines:
        return None
    title = f"Cosines of class prototypes, mean over parties: {label}"
    return _square(f"prototypes-{name}", title, [*cosines], [*cosines.values()], "class")


def kept_chart(run: Run, label: str, name: str) -> Chart | None:
    """The share of its own rows of each class that each party learned from in the last round; None if all were used."""
    kept = kept_of(run)
    if not kept:
        return None
    classes = [*next(iter(kept.values()))][:MOST_CLASSES]
    rows = [
        [one, party, None if shares[one][-1] is None else tidy(shares[one][-1])]
        for party, shares in kept.items()
        for one in classes
    ]
    known = [float(row[2]) for row in rows if row[2] is not None]
    about = "The share of its own rows of each class that a party learns from, in the last round"
    about += f"; from {min(known):.2f} to {max(known):.2f}." if known else "."
    spec = heat("class", "party", "share kept", size=(len(classes), len(kept)), places=2)
    columns = {"x": "class", "y": "party", "value": "share kept"}
    return Chart(f"kept-{name}", f"Rows that parties learn from: {label}", about, spec, columns, rows)


def _square(name: str, title: str, names: Sequence[str], table: Any, what: str) -> Chart:
    """A map of cosines of each of these with each other."""
    kept = [str(one) for one in names][:MOST_CLIENTS]
    rows: list[list[Any]] = [
        [other, one, tidy(value)]
        for one, line in zip(kept, table, strict=False)
        for other, value in zip(kept, line, strict=False)
    ]
    apart = [row for row in rows if row[0] != row[1] and row[2] is not None]
    about = f"Cosines between {len(kept)} {what}{'e' if what.endswith('s') else ''}s, from -1 (opposed) to 1 (alike)."
    if apart:
        low, high = (pick(apart, key=lambda row: row[2]) for pick in (min, max))
        about += f" Least alike: {low[1]} and {low[0]} ({low[2]:.2f}); most: {high[1]} and {high[0]} ({high[2]:.2f})."
    size = (len(kept), len(kept))
    spec = heat(what, what, "cosine", size=size, places=2, span=(-1.0, 1.0))
    columns = {"x": what, "y": f"other {what}", "value": "cosine"}
    return Chart(name, title, about, spec, columns, rows, _left(len(names), MOST_CLIENTS, "names"))


def _spaced(count: int) -> list[int]:
    return [int(at) for at in np.unique(np.linspace(0, count - 1, MOST_CLIENTS).round())]


def _left(count: int, most: int, what: str, more: str = "") -> str:
    return f"The first {most} of {count:,} {what} are shown. {more}".strip() if count > most else ""
