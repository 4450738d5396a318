"""Plots by kind: curves over rounds or bytes, and maps of one run."""

from __future__ import annotations

from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.report.figure import Figure
from fedquilt.report.lesson_plots import choice_plot, reward_plot, right_plot, sides_plot, traffic_plot
from fedquilt.report.maps import agreement_plot, allocation_map, partition_picture, probability_map
from fedquilt.report.party_plots import alike_plot, gate_plot, holdings_plot, kept_plot
from fedquilt.report.plot import over_bytes, over_rounds
from fedquilt.report.scores import WHO, curve, main_metric
from fedquilt.report.table import Groups

LINES = {"rounds": over_rounds, "bytes": over_bytes}
"""Plots with one line for each label."""

MAPS = {
    "partition": partition_picture,
    "allocation": allocation_map,
    "probabilities": probability_map,
    "agreement": agreement_plot,
    "server": sides_plot,
    "choice": choice_plot,
    "right": right_plot,
    "reward": reward_plot,
    "traffic": traffic_plot,
    "parties": holdings_plot,
    "gate": gate_plot,
    "prototypes": alike_plot,
    "kept": kept_plot,
}
"""Plots of one run."""


def draw(groups: Groups, kind: str = "rounds", who: str | None = None) -> Figure:
    """Draw a plot of runs by label.

    ``kind`` is ``rounds`` or ``bytes`` (scores over rounds or communication cost), or, for the first run only,
    ``partition`` (classes by client), ``allocation`` (layers trained by client), ``probabilities`` (of layers),
    ``agreement`` (of models in common coordinates), ``traffic`` (bytes of each exchange), or of a server that owns a
    model: ``server`` (its score beside the clients'), and of what server and clients took of each other's paths
    ``choice`` (shares), ``right`` (right paths among them) and ``reward`` (predicted and realised), or of a vertical
    run ``parties`` (who has what), ``gate`` (weights of parties by class), ``prototypes`` (cosines of class
    prototypes) and ``kept`` (the share of their own rows that parties learn from). ``who`` is as for ``scores.curve``;
    by default the first that was measured.

    Raises
    ------
    ConfigError
        if there is no such kind.
    RunError
        if the run recorded no data for it.
    """
    allowed = (*LINES, *MAPS)
    if kind not in allowed:
        raise ConfigError(f"kind = {kind!r}: no such picture{suggestion(kind, allowed)}; allowed: {', '.join(allowed)}")
    runs = [run for members in groups.values() for run in members]
    if kind in MAPS:
        return MAPS[kind](runs[0])
    measured = (one for one in WHO if any(curve(run, main_metric(run), one)[0] for run in runs))
    return LINES[kind](groups, who or next(measured, "global"))
