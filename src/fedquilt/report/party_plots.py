"""Plots of a vertical run: who has what, the weight of each party by class, and how alike class prototypes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedquilt.core.errors import RunError
from fedquilt.report.figure import Figure, named_ticks, new_figure
from fedquilt.report.parties import ALIKE, GATE, holdings, kept_of, party_names, table_of
from fedquilt.report.runs import Run

_MOST_NUMBERS = 400  # cells with a number in them


def holdings_plot(run: Run) -> Figure:
    """Draw how many aligned rows of each class all parties hold, and how many rows each party alone holds.

    Raises
    ------
    RunError
        if the run is not vertical.
    """
    found = holdings(run)
    if found is None:
        raise RunError(f"{run.folder}: is no vertical run, so no parties hold other columns of the same rows.")
    names = ["all (aligned)", *(f"{name} alone" for name in found.own)]
    rows = [[int(counts.get(one, 0)) for one in found.classes] for counts in (found.aligned, *found.own.values())]
    figure, axes = _heat(np.array(rows), names, found.classes, "rows", "Blues")
    axes.axhline(0.5, color="black", linewidth=1.0)
    axes.set_title("Training rows by class: those that all parties hold, and each party's own", fontsize=10, loc="left")
    return figure


def gate_plot(run: Run, label: str | None = None) -> Figure:
    """Draw the mean weight of each party in the prediction of test rows, by their class.

    Raises
    ------
    RunError
        if the run recorded no weights.
    """
    weights = table_of(run, GATE)
    if not weights:
        raise RunError(f"{run.folder}: no weights of parties were recorded; only methods with a gate over parties do.")
    names = [name for name in party_names(run) if name in weights]
    figure, axes = _heat(np.array([weights[name] for name in names]), names, _classes(run), "mean weight", "viridis")
    axes.set_title(f"{label or run.method}, seed {run.seed}: weight of each party by class", fontsize=10, loc="left")
    return figure


def alike_plot(run: Run, label: str | None = None) -> Figure:
    """Draw the cosines of class prototypes, means over the parties that have learned both classes.

    Raises
    ------
    RunError
        if the run recorded none.
    """
    cosines = table_of(run, ALIKE)
    if not cosines:
        raise RunError(f"{run.folder}: no class prototypes were recorded; only methods that learn some record them.")
    names = list(cosines)
    figure, axes = _heat(np.array([*cosines.values()]), names, names, "cosine", "RdBu_r", (-1.0, 1.0))
    axes.set_ylabel("class")
    title = f"{label or run.method}, seed {run.seed}: cosines of class prototypes, mean over parties (0: none has both)"
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def kept_plot(run: Run, label: str | None = None) -> Figure:
    """Draw which share of its own rows of each class each party learned from, in the last round.

    Raises
    ------
    RunError
        if no rows were left out.
    """
    kept = kept_of(run)
    if not kept:
        raise RunError(f"{run.folder}: no party left rows out; only methods that select rows, with keep below 1, do.")
    last = [[np.nan if share[-1] is None else share[-1] for share in own.values()] for own in kept.values()]
    figure, axes = _heat(
        np.array(last), [*kept], _classes(run), "share of rows that is learned from", "viridis", (0, 1)
    )
    title = f"{label or run.method}, seed {run.seed}: rows of their own that parties learn from, last round"
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def _classes(run: Run) -> list[str]:
    return [str(name) for name in run.partition.get("classes", ())]


def _heat(
    values: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    what: str,
    colours: str,
    span: tuple[float, float] | None = None,
) -> tuple[Figure, Any]:
    """A heat map with a row for each name and a column for each class, and the values in its cells if there is room.

    Parameters
    ----------
    values
        (names, classes).
    names, classes
        The names of rows and of columns.
    what, colours
        What the values are, and the name of matplotlib's colour map.
    span
        The values of both ends of the colour map; from 0 to the largest value for None.
    """
    low, high = span or (0.0, max(float(values.max(initial=0)), 1e-9))
    height = min(10.0, 1.7 + 0.34 * len(names))
    figure = new_figure(min(14.0, 3.6 + 0.5 * len(classes)), height)
    axes = figure.add_subplot()
    image = axes.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    figure.colorbar(image, ax=axes, label=what, pad=0.02)
    if values.size <= _MOST_NUMBERS:
        whole = bool(np.issubdtype(values.dtype, np.integer))
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = image.cmap(image.norm(value))
            shade = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            text = "" if np.isnan(value) else str(value) if whole else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
    named_ticks(axes.xaxis, classes)
    named_ticks(axes.yaxis, names)
    axes.set_xlabel("class")
    return figure, axes
