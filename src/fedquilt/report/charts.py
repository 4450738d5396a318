"""Interactive charts as Vega-Lite, without their data: no other module imports altair.

Every text of a record is a value of a row, never a name of a field or an expression, so a specification depends on
nothing that a client wrote. Lines of a chart differ in their dashes as well as in their colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

Spec = Mapping[str, Any]

HEIGHT = 280
MOST_NUMBERS = 400
"""The largest number of cells of a map that have their value written in them."""


class Chart(NamedTuple):
    """A chart with its data.

    Attributes
    ----------
    name
        The name of its files.
    title, about
        Its heading, and in words what a reader who does not see it should know.
    spec
        The specification, which reads the data set ``rows``.
    columns
        The fields of the rows, with what they hold in words.
    rows
        The data: a value for each column.
    left_out
        A sentence on what of the data is not shown; empty if all is.
    """

    name: str
    title: str
    about: str
    spec: Spec
    columns: Mapping[str, str]
    rows: Sequence[Sequence[Any]]
    left_out: str = ""


@cache
def lines(
    x: str,
    y: str,
    series: str,
    *,
    num_series: int = 1,
    places: int = 1,
    band: str = "",
    whole: bool = True,
    zero: bool = False,
) -> Spec:
    """A line for each series, and a band around it.

    Parameters
    ----------
    x, y, series
        What the axes and the lines are, in words. The fields are ``x``, ``y``, ``series`` and for a band ``low`` and
        ``high``.
    num_series
        The number of lines; the more there are, the fainter are their bands.
    places
        Decimals of the values in the text beside the pointer.
    band
        What the band is, in words; empty for none.
    whole
        Whether the values of x are whole numbers.
    zero
        Whether the axis of y begins at zero.
    """
    import altair as alt

    pick = alt.selection_point(name="pick", fields=["series"], bind="legend")
    form = f".{places}f"
    shown = [
        alt.Tooltip("series:N", title=series),
        alt.Tooltip("x:Q", title=x, format="d" if whole else ".4~g"),
        alt.Tooltip("y:Q", title=y, format=form),
    ]
    if band:
        shown += [alt.Tooltip(f"{end}:Q", title=f"{band}: {end}", format=form) for end in ("low", "high")]
    legend = alt.Legend(symbolType="stroke", symbolSize=320, symbolOpacity=1)
    step = alt.Axis(tickMinStep=1, format="d") if whole else alt.Axis()
    across = alt.X("x:Q", title=x, axis=step, scale=alt.Scale(zero=False, nice=False))
    level = alt.Axis(format=".5~g")
    up = alt.Y("y:Q", title=y, axis=level, scale=alt.Scale(zero=zero))
    base = alt.Chart(alt.NamedData("rows"))
    line = base.mark_line(point=alt.OverlayMarkDef(size=26)).encode(
        x=across,
        y=up,
        color=alt.Color("series:N", title=None, sort=None, legend=legend),
        strokeDash=alt.StrokeDash("series:N", title=None, sort=None, legend=legend),
        opacity=alt.condition(pick, alt.value(1), alt.value(0.12), empty=True),
        tooltip=shown,
    )
    around = base.mark_area().encode(
        x=across,
        y=alt.Y("low:Q", title=y, axis=level, scale=alt.Scale(zero=zero)),
        y2="high:Q",
        fill=alt.Fill("series:N", sort=None, legend=None),
        opacity=alt.condition(pick, alt.value(round(0.36 / (num_series + 1), 3)), alt.value(0.01), empty=True),
    )
    drawn = alt.layer(around, line) if band else line
    return _finished(drawn.add_params(pick).properties(width="container", height=HEIGHT))


@cache
def heat(
    x: str,
    y: str,
    value: str,
    *,
    size: tuple[int, int],
    places: int = 0,
    span: tuple[float, float] | None = None,
    upward: bool = False,
) -> Spec:
    """A map of cells, whose values are written in them where they are few.

    Parameters
    ----------
    x, y, value
        What the axes and the cells are, in words. The fields are ``x``, ``y`` and ``value``; names stand in the order
        of the rows.
    size
        The number of names on each axis.
    places
        Decimals of the values.
    span
        The least and the greatest value, for values that are as far from a middle on either side; from zero to the
        greatest there is for None.
    upward
        Whether the first name of y stands at the bottom.
    """
    import altair as alt

    columns, rows = size
    step = 20 if rows <= 30 else max(3, 600 // rows)
    scheme = "redblue" if span else "viridis"
    scale = alt.Scale(scheme=scheme, domain=list(span)) if span else alt.Scale(scheme=scheme, domainMin=0)
    form = f".{places}f"
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=alt.X("x:O", title=x, sort=None, axis=alt.Axis(labelOverlap=True, labelAngle=0 if columns <= 30 else -90)),
        y=alt.Y("y:O", title=y, sort="descending" if upward else None, axis=alt.Axis(labelOverlap=True)),
        tooltip=[
            alt.Tooltip("y:N", title=y),
            alt.Tooltip("x:N", title=x),
            alt.Tooltip("value:Q", title=value, format=form),
        ],
    )
    cells = base.mark_rect().encode(
        color=alt.Color("value:Q", scale=scale, title=value, legend=alt.Legend(gradientLength=160))
    )
    drawn = cells
    if columns * rows <= MOST_NUMBERS:
        dark = "abs(datum.value) > 0.55" if span else "datum.value < 0.55 * domain('color')[1]"
        needed = 9 + 6 * (places + 2 if places else 2)
        text = base.mark_text(fontSize=10, opacity=alt.expr(f"width / {columns} < {needed} ? 0 : 1")).encode(
            text=alt.Text("value:Q", format=form),
            color=alt.condition(dark, alt.value("white"), alt.value("black")),
        )
        drawn = alt.layer(cells, text)
    return _finished(drawn.properties(width="container", height=max(80, step * rows)))


@cache
def bars(x: str, y: str, *, places: int = 2, num_bars: int = 10, highest: float | None = None) -> Spec:
    """A bar for each name, from left to right as long as its value.

    Parameters
    ----------
    x, y
        What the values and the names are, in words; the fields are ``x`` and ``y``.
    places
        Decimals of the values.
    num_bars
        The number of names.
    highest
        Where the axis ends; None leaves that to the values.
    """
    import altair as alt

    scale = alt.Scale() if highest is None else alt.Scale(domainMax=highest)
    drawn = (
        alt.Chart(alt.NamedData("rows"))
        .mark_bar()
        .encode(
            x=alt.X("x:Q", title=x, scale=scale),
            y=alt.Y("y:N", title=y or None, sort=None, axis=alt.Axis(labelOverlap=True)),
            tooltip=[alt.Tooltip("y:N", title=y or "name"), alt.Tooltip("x:Q", title=x, format=f".{places}f")],
        )
    )
    return _finished(drawn.properties(width="container", height=max(40, min(20 * num_bars, 600))))


@cache
def bubbles(x: str, y: str, value: str, *, size: tuple[int, int]) -> Spec:
    """Circles whose area is a number, for each pair of names; fields and parameters are those of ``heat``."""
    import altair as alt

    columns, rows = size
    step = 22 if rows <= 40 else max(4, 880 // rows)
    drawn = (
        alt.Chart(alt.NamedData("rows"))
        .mark_circle(opacity=0.9)
        .encode(
            x=alt.X(
                "x:O", title=x, sort=None, axis=alt.Axis(labelOverlap=True, labelAngle=0 if columns <= 30 else -90)
            ),
            y=alt.Y("y:O", title=y, sort=None, axis=alt.Axis(labelOverlap=True, grid=True)),
            size=alt.Size("value:Q", title=value, scale=alt.Scale(range=[0, step * step * 0.8], domainMin=0)),
            tooltip=[
                alt.Tooltip("x:N", title=x),
                alt.Tooltip("y:N", title=y),
                alt.Tooltip("value:Q", title=value, format=",d"),
            ],
        )
    )
    return _finished(drawn.properties(width="container", height=max(80, step * rows)))


def _finished(drawn: Any) -> Spec:
    """The specification as plain values, without the looks, which the page has for light and for dark."""
    spec: dict[str, Any] = drawn.to_dict()
    spec.pop("config", None)
    return spec
