"""How far models agree in their common coordinates: a sentence, and a plot by place."""

from __future__ import annotations

from fedquilt.core.errors import RunError
from fedquilt.report.figure import COLOURS, Figure, named_ticks, new_figure, plain_axes
from fedquilt.report.runs import Run


def agreement_of(run: Run) -> dict[str, float]:
    """Return the mean correlation of held-out coordinates by place, as last recorded; empty without any."""
    found = ((line.get("state") or {}).get("agreement") for line in reversed(run.rounds))
    return next((dict(one) for one in found if one), {})


def agreement_words(run: Run) -> str:
    """Return a sentence on the agreement of a run's models; empty if none was recorded."""
    found = agreement_of(run)
    if not found:
        return ""
    lowest = min(found, key=lambda place: found[place])
    mean = sum(found.values()) / len(found)
    words = f"common coordinates of held-out public inputs correlate by {mean:.2f} between models, the mean over places"
    return f"{words}; the least is {found[lowest]:.2f} ({lowest})."


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
