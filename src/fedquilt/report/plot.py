"""Plots of runs: curves over rounds and over bytes, and all plots written into a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import RunError
from fedquilt.report.agreement import agreement_of
from fedquilt.report.conflicts import alignments
from fedquilt.report.curves import mean_bytes, mean_curve
from fedquilt.report.figure import COLOURS, DASHES, MARKERS, Figure, MaxNLocator, new_figure, plain_axes, png
from fedquilt.report.groups import SERVER, group_curve
from fedquilt.report.lesson_plots import choice_plot, reward_plot, right_plot, sides_plot, traffic_plot
from fedquilt.report.lessons import pupils
from fedquilt.report.maps import agreement_plot, alignment_map, allocation_map, partition_picture, probability_map
from fedquilt.report.parties import ALIKE, GATE, holdings, kept_of, table_of
from fedquilt.report.party_plots import alike_plot, gate_plot, holdings_plot, kept_plot
from fedquilt.report.runs import (
    BYTE_UNITS,
    Run,
    allocation,
    client_table,
    cumulative_bytes,
    layer_probabilities,
)
from fedquilt.report.scores import WHO, curve, main_metric, scale_of
from fedquilt.report.table import Groups, short_names


def _lines(groups: Groups, who: str, across: Callable[[Sequence[Run], list[int]], np.ndarray], x_label: str) -> Figure:
    """Draw one line per label; the legend is in the order in which the lines end, from top to bottom."""
    metric = next(main_metric(run) for runs in groups.values() for run in runs)
    scale, y_label = scale_of(metric)
    figure = new_figure(9.6 if len(groups) > 6 else 7.2, 4.5)
    axes = figure.add_subplot()
    drawn = []
    seeds = set()
    for number, (label, runs) in enumerate(groups.items()):
        rounds, middle, spread, num_runs = mean_curve(runs, metric, who)
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
    plain_axes(axes)
    handles = [line for _, line in drawn]
    if len(handles) > 6:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, handlelength=3.2)
    else:
        axes.legend(handles=handles, loc="best", frameon=False, fontsize=9, handlelength=3.2)
    return figure


def over_rounds(groups: Groups, who: str = "global") -> Figure:
    """Draw the metric over rounds: one line per label, the mean over seeds with a band of one standard deviation."""
    figure = _lines(groups, who, lambda runs, rounds: np.array(rounds) + 1, "round")  # readers count from 1
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def over_bytes(groups: Groups, who: str = "global") -> Figure:
    """Draw the metric over the communication cost so far: bytes up and down, mean over seeds."""
    most = max(up[-1] + down[-1] for runs in groups.values() for _, up, down in map(cumulative_bytes, runs))
    size, unit = next(((size, unit) for size, unit in BYTE_UNITS if most >= size), BYTE_UNITS[-1])

    def sent(runs: Sequence[Run], rounds: list[int]) -> np.ndarray:
        return mean_bytes(runs, rounds) / size

    return _lines(groups, who, sent, f"sent so far by all clients, up and down ({unit})")


def figures(groups: Groups) -> Iterator[tuple[str, Figure]]:
    """Yield every plot that the runs have data for, with its file name (without extension).

    Allocation and probabilities are drawn for the first run of each label, the partition for the first run of all.

    Raises
    ------
    RunError
        if no run was given.
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
    if holdings(runs[0]):
        yield "parties", holdings_plot(runs[0])
    elif any("train" in client for client in client_table(runs[0])):  # real sites do not disclose their rows
        yield "partition", partition_picture(runs[0])
    names = short_names(groups)
    for label, members in groups.items():
        short = names[label]
        if members and allocation(members[0])[1].any():
            yield f"allocation-{short}", allocation_map(members[0], label)
        if members and layer_probabilities(members[0]):
            yield f"probabilities-{short}", probability_map(members[0], label)
        if members and agreement_of(members[0]):
            yield f"agreement-{short}", agreement_plot(members[0], label)
        if members and alignments(members[0]):
            yield f"alignment-{short}", alignment_map(members[0], label)
        if members:
            yield from _of_lessons(members[0], label, short)
            yield from _of_parties(members[0], label, short)


def _of_lessons(run: Run, label: str, short: str) -> Iterator[tuple[str, Figure]]:
    """Yield the plots of a run whose server owns a model, and of what it and the clients took of each other's paths."""
    told = {name for pupil in pupils(run) for name in pupil.numbers}
    if group_curve(run, SERVER, main_metric(run), "global")[0]:
        yield f"server-and-clients-{short}", sides_plot(run, label)
    if told:
        yield f"choice-{short}", choice_plot(run, label)
        yield f"bytes-{short}", traffic_plot(run, label)
    if "taken_right" in told:
        yield f"right-paths-{short}", right_plot(run, label)
    if "label_correlation" in told:
        yield f"reward-{short}", reward_plot(run, label)


def _of_parties(run: Run, label: str, short: str) -> Iterator[tuple[str, Figure]]:
    """Yield the plots of what the parties of a vertical run have learned."""
    if table_of(run, GATE):
        yield f"gate-{short}", gate_plot(run, label)
    if table_of(run, ALIKE):
        yield f"prototypes-{short}", alike_plot(run, label)
    if kept_of(run):
        yield f"kept-{short}", kept_plot(run, label)


def save_plots(groups: Groups, folder: str | Path) -> list[Path]:
    """Write all plots into ``folder``, replacing files of the same names, and return their paths.

    Raises
    ------
    RunError
        if the folder cannot be written, or no run was given.
    """
    folder = Path(folder)
    paths = []
    for name, figure in figures(groups):
        path = folder / f"{name}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, png(figure))
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}). Give another folder for the plots."
            ) from error
        paths.append(path)
    return paths
