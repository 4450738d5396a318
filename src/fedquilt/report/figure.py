"""Matplotlib figures: size, colours, axes, PNG. No other module imports matplotlib.

Figures are objects; matplotlib's global state is not used. Colours are the colour-blind safe palette of Okabe and Ito;
lines also differ in dash pattern and marker.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = [
    "COLOURS",
    "DASHES",
    "DPI",
    "MARKERS",
    "Figure",
    "MaxNLocator",
    "named_ticks",
    "new_figure",
    "plain_axes",
    "png",
]

DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")  # without yellow: unreadable
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class _Shown(Figure):
    """A figure that a notebook shows as PNG, whether or not it has loaded pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self)


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of ``width`` x ``height`` inches."""
    figure = _Shown(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Any) -> None:
    """Give axes a light grid and no frame at the top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def named_ticks(axis: Any, names: Sequence[Any]) -> None:
    """Set at most about 30 named ticks, evenly spaced."""
    step = -(-len(names) // 30)
    axis.set_ticks(list(range(0, len(names), step)), [str(name) for name in names[::step]], fontsize=8)


def png(figure: Figure) -> bytes:
    """Render the figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
