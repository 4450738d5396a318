"""Pictures of runs. The only file that imports matplotlib; figures are objects, never its global state.

Colours are Okabe and Ito's, told apart by colour-blind readers; every line has its own dash and marker as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import RunError
from fedquilt.report.conflicts import alignments
from fedquilt.report.runs import (
    WHO,
    Run,
    allocation,
    budget_layers,
    client_names,
    client_table,
    cumulative_bytes,
    curve,
    layer_probabilities,
    main_metric,
)
from fedquilt.report.table import Groups

DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")  # yellow is lost on white
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B"))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _scale(metric: str) -> tuple[float, str]:
    return (100.0, "accuracy (%)") if metric == "accuracy" else (1.0, metric)


def _mean_curve(runs: Sequence[Run], metric: str, who: str) -> tuple[list[int], np.ndarray, np.ndarray | None, int]:
    """Rounds every run has measured, mean over runs, sample deviation (None for a single run), number of runs."""
    curves = [dict(zip(*curve(run, metric, who), strict=True)) for run in runs]
    curves = [values for values in curves if values]
    rounds = sorted(set.intersection(*(set(values) for values in curves))) if curves else []
    table = np.array([[values[index] for index in rounds] for values in curves])  # (runs, rounds)
    if not rounds:
        return [], np.array([]), None, 0
    return rounds, table.mean(axis=0), table.std(axis=0, ddof=1) if len(curves) > 1 else None, len(curves)


def _lines(groups: Groups, who: str, across: Callable[[Sequence[Run], list[int]], np.ndarray], x_label: str) -> Figure:
    """One line per label; the legend is sorted as the lines end, so that it reads as the picture does."""
    metric = next(main_metric(run) for runs in groups.values() for run in runs)
    scale, y_label = _scale(metric)
    figure = _figure(9.6 if len(groups) > 6 else 7.2, 4.5)
    axes = figure.add_subplot()
    drawn = []
    seeds = set()
    for number, (label, runs) in enumerate(groups.items()):
        rounds, middle, spread, num_runs = _mean_curve(runs, metric, who)
        if not rounds:
            continue
        x = across(runs, rounds)
        colour = COLOURS[number % len(COLOURS)]
        step = max(1, len(rounds) // 6)
        (line,) = axes.plot(
            x,
            middle * scale,
            color=colour,
            linestyle=DASHES[number % len(DASHES)],
            linewidth=1.6,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            markevery=(number % step, step),
            label=label,
        )
        if spread is not None:
            axes.fill_between(x, (middle - spread) * scale, (middle + spread) * scale, color=colour, alpha=0.12, lw=0)
        seeds.add(num_runs)
        drawn.append((middle[-1], line))
    drawn.sort(key=lambda item: -item[0])
    band = f", line: mean over {max(seeds)} seeds, band: ± 1 deviation" if seeds and max(seeds) > 1 else ""
    axes.set_title(WHO[who] + band, fontsize=10, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _plain(axes)
    handles = [line for _, line in drawn]
    if len(handles) > 6:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, handlelength=3.2)
    else:
        axes.legend(handles=handles, loc="best", frameon=False, fontsize=9, handlelength=3.2)
    return figure


def over_rounds(groups: Groups, who: str = "global") -> Figure:
    """The metric over rounds: one line per label, the mean over seeds with a band of one deviation."""
    figure = _lines(groups, who, lambda runs, rounds: np.array(rounds) + 1, "round")  # people count from 1
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def over_bytes(groups: Groups, who: str = "global") -> Figure:
    """The metric over all bytes that crossed the network so far, up and down (mean over seeds)."""
    most = max(up[-1] + down[-1] for runs in groups.values() for _, up, down in map(cumulative_bytes, runs))
    size, unit = next(((size, unit) for size, unit in BYTE_UNITS if most >= size), BYTE_UNITS[-1])

    def sent(runs: Sequence[Run], rounds: list[int]) -> np.ndarray:
        tables = []
        for run in runs:
            at, up, down = cumulative_bytes(run)
            total = {index: u + d for index, u, d in zip(at, up, down, strict=True)}
            if all(index in total for index in rounds):
                tables.append([total[index] / size for index in rounds])
        return np.mean(tables, axis=0)

    return _lines(groups, who, sent, f"sent so far by all clients, up and down ({unit})")


def allocation_map(run: Run, label: str | None = None) -> Figure:
    """A heat map of how often each client trained each layer: layers upwards, clients sorted by budget.

    Raises:
        RunError: the run kept no layers.
    """
    ids, counts = allocation(run)
    if not counts.any():
        raise RunError(f"{run.folder}: no client was told which layers to train; there is no allocation to draw.")
    budgets = {int(client["id"]): budget_layers(client) for client in client_table(run)}
    order = sorted(range(len(ids)), key=lambda at: (budgets.get(ids[at]) or 0, ids[at]))
    counts, ids = counts[:, order], [ids[at] for at in order]
    num_layers, num_clients = counts.shape
    figure = _figure(min(14.0, max(5.5, 2.6 + 0.34 * num_clients)), min(9.0, max(3.2, 1.7 + 0.27 * num_layers)))
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
        if stop - start == 1 and num_clients > 8:  # no room for words above one narrow column
            name = "-" if groups[start] is None else str(groups[start])
        axes.text((start + stop - 1) / 2, num_layers - 0.4, name, ha="center", va="bottom", fontsize=8)
    names = client_names(run)
    _ticks(axes.xaxis, [names.get(client, client) for client in ids])
    _ticks(axes.yaxis, list(range(num_layers)))
    axes.set_xlabel("client, sorted by capability group (budget in layers)")
    axes.set_ylabel("layer (0 is nearest the input)")
    axes.set_title(
        f"{label or run.method}, seed {run.seed}: layers by capability group", fontsize=10, loc="left", pad=18
    )
    return figure


def partition_picture(run: Run) -> Figure:
    """Which client holds how many training rows of which class: a bubble whose area is the number of rows.

    Without classes (language modelling) it is one bar per client.

    Raises:
        RunError: the run kept no clients.
    """
    clients = client_table(run)
    if not clients:
        raise RunError(f"{run.folder}/partition.json: no client in it; there is no partition to draw.")
    ids = [int(client["id"]) for client in clients]
    classes = [str(name) for name in run.partition.get("classes", ())]
    width = min(14.0, max(5.5, 2.2 + 0.3 * len(ids)))
    if not classes:
        figure = _figure(width, 3.6)
        axes = figure.add_subplot()
        axes.bar(range(len(ids)), [len(client.get("train", ())) for client in clients], color=COLOURS[0])
        axes.set_ylabel("training rows")
        axes.set_title("Training rows of each client", fontsize=10, loc="left")
    else:
        rows = [[int((client.get("labels") or {}).get(name, 0)) for client in clients] for name in classes]
        counts = np.array(rows)  # (classes, clients)
        figure = _figure(width, min(11.0, max(3.2, 1.5 + 0.3 * len(classes))))
        axes = figure.add_subplot()
        room = 0.26 * 72 * min(1.0, 11.8 / (0.3 * len(ids)), 9.5 / (0.3 * len(classes)))  # points across one cell
        at_class, at_client = np.nonzero(counts)
        held = counts[at_class, at_client]
        area = (room**2) * held / max(1, counts.max())
        axes.scatter(at_client, at_class, s=area, color=COLOURS[0], linewidths=0, zorder=3)
        _ticks(axes.yaxis, classes)
        axes.set_ylim(-0.7, len(classes) - 0.3)
        axes.set_ylabel("class")
        axes.set_title(f"Rows by client and class (largest bubble: {counts.max():,} rows)", fontsize=10, loc="left")
    names = client_names(run)
    _ticks(axes.xaxis, [names[client] for client in ids])
    axes.set_xlim(-0.7, len(ids) - 0.3)
    axes.set_xlabel("client")
    _plain(axes)
    return figure


def probability_map(run: Run, label: str | None = None) -> Figure:
    """Each layer's odds of being drawn, which sum to 1 in a round, over the rounds that kept them.

    Raises:
        RunError: the run kept no layer probabilities.
    """
    found = layer_probabilities(run)
    if not found:
        raise RunError(f"{run.folder}: no odds of layers were kept; only some methods draw layers by chance.")
    num_layers = max(len(values) for _, values in found.values())
    figure = _figure(7.2, (1.0 + min(4.5, max(2.0, 0.24 * num_layers))) * min(3, len(found)) + 0.3)
    highest = max(float(np.nanmax(values)) for _, values in found.values())
    all_axes = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, (group, (rounds, values)) in zip(all_axes, found.items(), strict=True):
        image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=highest)
        axes.set_title(
            f"{label or run.method}, seed {run.seed}{': ' + group if group else ''}", fontsize=10, loc="left"
        )
        _ticks(axes.xaxis, [number + 1 for number in rounds])
        _ticks(axes.yaxis, list(range(len(values))))
        axes.set_ylabel("layer (0 is nearest the input)" if len(found) == 1 else "layer")
    all_axes[-1].set_xlabel("round")
    figure.colorbar(image, ax=list(all_axes), label="odds of being drawn (a round's sum to 1)", pad=0.02)
    return figure


def alignment_map(run: Run, label: str | None = None) -> Figure:
    """How many pairs of groups pulled the same tensors in opposing directions in each round, and who with whom.

    Raises:
        RunError: the run aligned nothing.
    """
    found = alignments(run)
    if not found:
        raise RunError(f"{run.folder}: nothing was aligned; set method.align or aggregation.align in a new run.")
    figure = _figure(8.4, 3.4 * min(3, len(found)) + 0.3)
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
        _plain(left)
        if one.cosines is None:
            right.set_axis_off()
            continue
        image = right.imshow(one.cosines, cmap="RdBu", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(one.cosines):
            if len(one.names) <= 6 and not np.isnan(value):
                colour = "white" if abs(value) > 0.6 else "black"
                right.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        _ticks(right.xaxis, one.names)
        _ticks(right.yaxis, one.names)
        right.tick_params(axis="x", rotation=45)
        right.set_title("mean cosine of two groups", fontsize=10, loc="left")
        figure.colorbar(image, ax=right, pad=0.02)
    return figure


def _ticks(axis: Any, names: Sequence[Any]) -> None:
    """At most some 30 named ticks, evenly spaced."""
    step = -(-len(names) // 30)
    axis.set_ticks(list(range(0, len(names), step)), [str(name) for name in names[::step]], fontsize=8)


def figures(groups: Groups) -> Iterator[tuple[str, Figure]]:
    """Every picture the runs have numbers for, with its file name (without ending).

    Allocation and probabilities are drawn for the first run of each label, the partition for the first run of all.
    """
    runs = [run for members in groups.values() for run in members]
    if not runs:
        raise RunError("no run was given, so there is nothing to draw. Give at least one run folder.")
    sends = any(up[-1] + down[-1] for _, up, down in map(cumulative_bytes, runs))
    for who, name in (("global", "global"), ("clients-mean", "personalised"), ("received-mean", "received")):
        if any(curve(run, main_metric(run), who)[0] for run in runs):
            yield f"{name}-over-rounds", over_rounds(groups, who)
            if sends:
                yield f"{name}-over-bytes", over_bytes(groups, who)
    if any("train" in client for client in client_table(runs[0])):  # sites keep to themselves which rows they have
        yield "partition", partition_picture(runs[0])
    used: set[str] = set()
    for label, members in groups.items():
        short = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "run"
        while short in used:
            short += "-again"
        used.add(short)
        if members and allocation(members[0])[1].any():
            yield f"allocation-{short}", allocation_map(members[0], label)
        if members and layer_probabilities(members[0]):
            yield f"probabilities-{short}", probability_map(members[0], label)
        if members and alignments(members[0]):
            yield f"alignment-{short}", alignment_map(members[0], label)


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save_plots(groups: Groups, folder: str | Path) -> list[Path]:
    """The paths of the pictures, written into ``folder`` (made where missing, older pictures of a name replaced).

    Raises:
        RunError: the folder cannot be written, or no run was given.
    """
    folder = Path(folder)
    paths = []
    for name, figure in figures(groups):
        path = folder / f"{name}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, png(figure))
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error}). Give another folder for the plots.") from error
        paths.append(path)
    return paths
