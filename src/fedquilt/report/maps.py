"""Plots of allocation, partition, layer probabilities, alignment and agreement."""

from __future__ import annotations

import numpy as np

from fedquilt.core.errors import RunError
from fedquilt.report.agreement import agreement_of
from fedquilt.report.conflicts import alignments
from fedquilt.report.figure import COLOURS, MARKERS, Figure, MaxNLocator, named_ticks, new_figure, plain_axes
from fedquilt.report.runs import (
    Run,
    allocation,
    budget_layers,
    client_names,
    client_table,
    layer_probabilities,
)


def allocation_map(run: Run, label: str | None = None) -> Figure:
    """Draw a heat map of how often each client trained each layer; clients are sorted by budget.

    Raises
    ------
    RunError
        if the run recorded no allocation of layers.
    """
    ids, counts = allocation(run)
    if not counts.any():
        raise RunError(f"{run.folder}: the method allocates no layers to clients; there is no allocation to draw.")
    budgets = {int(client["id"]): budget_layers(client) for client in client_table(run)}
    order = sorted(range(len(ids)), key=lambda at: (budgets.get(ids[at]) or 0, ids[at]))
    counts, ids = counts[:, order], [ids[at] for at in order]
    num_layers, num_clients = counts.shape
    figure = new_figure(min(14.0, max(5.5, 2.6 + 0.34 * num_clients)), min(9.0, max(3.2, 1.7 + 0.27 * num_layers)))
    axes = figure.add_subplot()
    image = axes.imshow(counts, origin="lower", aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="rounds trained", ticks=MaxNLocator(integer=True), pad=0.02)
    if num_layers * num_clients <= 400:
        for (layer, client), count in np.ndenumerate(counts):
            shade = "black" if count > 0.5 * counts.max() else "white"
            axes.text(client, layer, str(count), ha="center", va="center", fontsize=7, color=shade)
    groups = [budgets.get(client) for client in ids]
    starts = [at for at in range(num_clients) if at == 0 or groups[at] != groups[at - 1]]
    for start, stop in zip(starts, [*starts[1:], num_clients], strict=True):
        if start:
            axes.axvline(start - 0.5, color="white", linewidth=2.5)
        name = "no budget" if groups[start] is None else f"{groups[start]} layers"
        if stop - start == 1 and num_clients > 8:  # the longer text does not fit above one narrow column
            name = "-" if groups[start] is None else str(groups[start])
        axes.text((start + stop - 1) / 2, num_layers - 0.4, name, ha="center", va="bottom", fontsize=8)
    names = client_names(run)
    named_ticks(axes.xaxis, [names.get(client, client) for client in ids])
    named_ticks(axes.yaxis, list(range(num_layers)))
    axes.set_xlabel("client, sorted by capability group (budget in layers)")
    axes.set_ylabel("layer (0 is nearest the input)")
    axes.set_title(
        f"{label or run.method}, seed {run.seed}: layers by capability group", fontsize=10, loc="left", pad=18
    )
    return figure


def partition_picture(run: Run) -> Figure:
    """Draw how many training rows of each class each client holds, as bubbles whose area is the number of rows.

    Without classes (language modelling) there is one bar per client.

    Raises
    ------
    RunError
        if the run recorded no clients.
    """
    clients = client_table(run)
    if not clients:
        raise RunError(f"{run.folder}/partition.json: it lists no clients; there is no partition to draw.")
    ids = [int(client["id"]) for client in clients]
    classes = [str(name) for name in run.partition.get("classes", ())]
    width = min(14.0, max(5.5, 2.2 + 0.3 * len(ids)))
    if not classes:
        figure = new_figure(width, 3.6)
        axes = figure.add_subplot()
        axes.bar(range(len(ids)), [len(client.get("train", ())) for client in clients], color=COLOURS[0])
        axes.set_ylabel("training rows")
        axes.set_title("Training rows of each client", fontsize=10, loc="left")
    else:
        rows = [[int((client.get("labels") or {}).get(name, 0)) for client in clients] for name in classes]
        counts = np.array(rows)  # (classes, clients)
        figure = new_figure(width, min(11.0, max(3.2, 1.5 + 0.3 * len(classes))))
        axes = figure.add_subplot()
        room = 0.26 * 72 * min(1.0, 11.8 / (0.3 * len(ids)), 9.5 / (0.3 * len(classes)))  # points across one cell
        at_class, at_client = np.nonzero(counts)
        held = counts[at_class, at_client]
        area = (room**2) * held / max(1, counts.max())
        axes.scatter(at_client, at_class, s=area, color=COLOURS[0], linewidths=0, zorder=3)
        named_ticks(axes.yaxis, classes)
        axes.set_ylim(-0.7, len(classes) - 0.3)
        axes.set_ylabel("class")
        axes.set_title(f"Rows by client and class (largest bubble: {counts.max():,} rows)", fontsize=10, loc="left")
    names = client_names(run)
    named_ticks(axes.xaxis, [names[client] for client in ids])
    axes.set_xlim(-0.7, len(ids) - 0.3)
    axes.set_xlabel("client")
    plain_axes(axes)
    return figure


def probability_map(run: Run, label: str | None = None) -> Figure:
    """Draw each layer's probability of being drawn first in a round, over the rounds that recorded them.

    Raises
    ------
    RunError
        if the run recorded no layer probabilities.
    """
    found = layer_probabilities(run)
    if not found:
        raise RunError(f"{run.folder}: no layer probabilities were recorded; only some methods draw layers at random.")
    num_layers = max(len(values) for _, values in found.values())
    figure = new_figure(7.2, (1.0 + min(4.5, max(2.0, 0.24 * num_layers))) * min(3, len(found)) + 0.3)
    highest = max(float(np.nanmax(values)) for _, values in found.values())
    all_axes = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, (group, (rounds, values)) in zip(all_axes, found.items(), strict=True):
        image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=highest)
        axes.set_title(
            f"{label or run.method}, seed {run.seed}{': ' + group if group else ''}", fontsize=10, loc="left"
        )
        named_ticks(axes.xaxis, [number + 1 for number in rounds])
        named_ticks(axes.yaxis, list(range(len(values))))
        axes.set_ylabel("layer (0 is nearest the input)" if len(found) == 1 else "layer")
    all_axes[-1].set_xlabel("round")
    figure.colorbar(image, ax=list(all_axes), label="probability of being drawn first (sum 1 per round)", pad=0.02)
    return figure


def alignment_map(run: Run, label: str | None = None) -> Figure:
    """Draw the number of conflicting pairs of groups in each round, and the mean cosines between groups.

    Raises
    ------
    RunError
        if the run recorded no alignment.
    """
    found = alignments(run)
    if not found:
        raise RunError(f"{run.folder}: no alignment was recorded; set method.align or aggregation.align in a new run.")
    figure = new_figure(8.4, 3.4 * min(3, len(found)) + 0.3)
    rows = figure.subplots(len(found), 2, squeeze=False, width_ratios=(1.5, 1.0))
    for (left, right), (name, one) in zip(rows, found.items(), strict=True):
        left.plot(
            [number + 1 for number in one.rounds],
            one.conflicts,
            color=COLOURS[0],
            marker=MARKERS[0],
            markersize=3,
            linewidth=1.2,
        )
        left.set_title(f"{label or run.method}, seed {run.seed}{': ' + name if name else ''}", fontsize=10, loc="left")
        left.set_ylabel("conflicts (pairs, over all parts)")
        left.set_ylim(bottom=0)
        for axis in (left.xaxis, left.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        left.set_xlabel("round")
        plain_axes(left)
        if one.cosines is None:
            right.set_axis_off()
            continue
        image = right.imshow(one.cosines, cmap="RdBu", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(one.cosines):
            if len(one.names) <= 6 and not np.isnan(value):
                colour = "white" if abs(value) > 0.6 else "black"
                right.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        named_ticks(right.xaxis, one.names)
        named_ticks(right.yaxis, one.names)
        right.tick_params(axis="x", rotation=45)
        right.set_title("mean cosine of two groups", fontsize=10, loc="left")
        figure.colorbar(image, ax=right, pad=0.02)
    return figure


def agreement_plot(run: Run, label: str | None = None) -> Figure:
    """Draw the agreement of the models at each place as bars.

    Raises
    ------
    RunError
        if the run recorded no agreement.
    """
    found = agreement_of(run)
    if not found:
        raise RunError(f"{run.folder}: no agreement was recorded; only models in common coordinates have one.")
    figure = new_figure(6.4, min(11.0, 1.4 + 0.26 * len(found)))
    axes = figure.add_subplot()
    axes.barh(range(len(found)), list(found.values()), color=COLOURS[0])
    named_ticks(axes.yaxis, list(found))
    axes.set_xlim(min(0.0, *found.values()), 1.0)
    axes.set_xlabel("mean correlation of held-out coordinates (unrelated models: 0)")
    axes.set_title(f"{label or run.method}, seed {run.seed}: agreement by place", fontsize=10, loc="left")
    plain_axes(axes)
    return figure
