"""Plots of a run in which a server's model and its clients' models teach each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedquilt.core.errors import RunError
from fedquilt.report.figure import COLOURS, DASHES, MARKERS, Figure, MaxNLocator, new_figure, plain_axes
from fedquilt.report.groups import SERVER, group_curve, group_labels
from fedquilt.report.lessons import Pupil, Series, pupils
from fedquilt.report.runs import BYTE_UNITS, Run, client_names, exchange_bytes
from fedquilt.report.scores import client_curves, main_metric, scale_of

_MOST = 10  # lines that a legend names

_WHO = ("clients, taught by the server", "the server, taught by each client")


def choice_plot(run: Run, label: str | None = None) -> Figure:
    """Draw the share of the offered paths that each student took, over rounds.

    Raises
    ------
    RunError
        if no student told about its choices.
    """
    return _panels(run, label, {"share of the paths taken": ("taken",)}, (-0.02, 1.02))


def right_plot(run: Run, label: str | None = None) -> Figure:
    """Draw the share of right paths among those that each student took, and dashed among those that it was offered.

    Raises
    ------
    RunError
        if the run does not know which paths are right.
    """
    rows = {"share of right paths (dashed: of all offered)": ("taken_right", "offered_right")}
    return _panels(run, label, rows, (-0.02, 1.02))


def reward_plot(run: Run, label: str | None = None) -> Figure:
    """Draw how the rewards that each student's filter had learned to predict compare with those that training gave.

    Raises
    ------
    RunError
        if no filter predicts rewards.
    """
    rows = {"correlation of predicted and realised": ("label_correlation",), "error of prediction": ("label_error",)}
    return _panels(run, label, rows)


def sides_plot(run: Run, label: str | None = None) -> Figure:
    """Draw the score of the server's model beside those of the clients' and the groups' models, over rounds.

    Raises
    ------
    RunError
        if the server owns no model, or it was not evaluated.
    """
    metric = main_metric(run)
    scale, words = scale_of(metric)
    own = group_curve(run, SERVER, metric, "global")
    if not own[0]:
        raise RunError(f"{run.folder}: no score of a model that the server owns was recorded; [server] gives it one.")
    names = client_names(run)
    lines = {f"group {name}": group_curve(run, name, metric, "global") for name in group_labels(run)}
    lines |= {f"client {names.get(client, client)}": found for client, found in client_curves(run, metric).items()}
    figure = new_figure(8.4, 4.5)
    axes = figure.add_subplot()
    axes.plot([one + 1 for one in own[0]], [one * scale for one in own[1]], color="black", linewidth=3.0, label=SERVER)
    others = {name: (rounds, [value * scale for value in values]) for name, (rounds, values) in lines.items()}
    _draw(axes, others, colours=[colour for colour in COLOURS if colour != "#000000"])
    _finish(figure, axes, f"{_title(run, label)}: the server's model beside the clients', each on its own test set")
    axes.set_ylabel(words)
    return figure


def traffic_plot(run: Run, label: str | None = None) -> Figure:
    """Draw the bytes that all clients sent and received in each round, by exchange.

    Raises
    ------
    RunError
        if nothing was sent.
    """
    found = exchange_bytes(run)
    most = max((size for _, sizes in found.values() for size in sizes), default=0)
    if not most:
        raise RunError(f"{run.folder}: nothing was sent; there are no bytes to draw.")
    size, unit = next((size, unit) for size, unit in BYTE_UNITS if most >= size)
    figure = new_figure(8.4, 4.0)
    axes = figure.add_subplot()
    named = {f"{exchange}, {way}": own for (exchange, way), own in found.items()}
    _draw(axes, {name: (rounds, [one / size for one in sizes]) for name, (rounds, sizes) in named.items()})
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"sent in a round, all clients ({unit})")
    _finish(figure, axes, f"{_title(run, label)}: communication of each round")
    return figure


def _panels(
    run: Run, label: str | None, rows: Mapping[str, tuple[str, ...]], within: tuple[float, float] | None = None
) -> Figure:
    """Draw a panel for each number, by the label of its axis, and each direction; a second number of one is dashed."""
    wanted = next(iter(rows.values()))[0]
    sides = [[one for one in pupils(run) if (one.student == SERVER) == of_server] for of_server in (False, True)]
    there = [(own, who) for own, who in zip(sides, _WHO, strict=True) if any(wanted in one.numbers for one in own)]
    if not there:
        raise RunError(f"{run.folder}: no student told '{wanted}' of what it took of a teacher's paths.")
    figure = new_figure(1.6 + 4.6 * len(there), 0.6 + 3.2 * len(rows))
    table = figure.subplots(len(rows), len(there), squeeze=False)
    for line, (words, names) in zip(table, rows.items(), strict=True):
        for axes, (own, who) in zip(line, there, strict=True):
            _draw(axes, _series(own, names[0]))
            for name in names[1:]:
                _draw(axes, _series(own, name), dashed=True)
            if within:
                axes.set_ylim(*within)
            axes.set_ylabel(words)
            _finish(figure, axes, who)
    figure.suptitle(_title(run, label), fontsize=10, x=0.01, ha="left")
    return figure


def _series(own: Sequence[Pupil], name: str) -> dict[str, Series]:
    """The named number of each of these students over rounds, by the client's name."""
    found = {one.teacher if one.student == SERVER else one.student: one.numbers.get(name) for one in own}
    return {who: series or ([], []) for who, series in found.items()}


def _draw(axes: Any, lines: dict[str, Series], dashed: bool = False, colours: Sequence[str] = COLOURS) -> None:
    """Draw a line for each name; dashed ones have no markers and no names in the legend."""
    for number, (name, (rounds, values)) in enumerate(lines.items()):
        look = {"linestyle": "--"} if dashed else {"marker": MARKERS[number % len(MARKERS)], "label": name}
        if not dashed:
            look["linestyle"] = DASHES[number // len(colours) % len(DASHES)]
        at = [one + 1 for one in rounds]  # readers count from 1
        axes.plot(at, values, color=colours[number % len(colours)], linewidth=1.4, markersize=4, **look)


def _finish(figure: Figure, axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_axes(axes)
    if len(axes.get_legend_handles_labels()[0]) <= _MOST:
        axes.legend(loc="best", frameon=False, fontsize=8, handlelength=3.0)


def _title(run: Run, label: str | None) -> str:
    return f"{label or run.method}, seed {run.seed}"
