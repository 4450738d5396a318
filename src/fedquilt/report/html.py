"""Pieces of HTML that the page and a notebook share; every text in them is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fedquilt.report.charts import Chart
from fedquilt.report.columns import counted


def table_html(cells: Sequence[Sequence[str]], caption: str = "", left_out: str = "") -> str:
    """A table whose first line of texts is its heading, and whose first column names each row.

    ``left_out`` is a sentence below it on rows that it lacks.
    """
    head, *lines = cells
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    rest = "\n".join(
        f'<tr><th scope="row">{escape(line[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in line[1:])}</tr>'
        for line in lines
    )
    name = f"<caption><span>{escape(caption)}</span></caption>" if caption else ""
    region = f' role="region" aria-label="{escape(caption)}" tabindex="0"' if caption else ""
    table = f"<table>{name}\n<thead><tr>{top}</tr></thead>\n<tbody>\n{rest}\n</tbody></table>"
    note = f'<p class="note">{escape(left_out)}</p>' if left_out else ""
    return f'<div class="wide"{region}>{table}</div>{note}'


def chart_html(chart: Chart) -> str:
    """The place of a chart, with its text alternative, its numbers and its files; the page's script fills it."""
    name, size = escape(chart.name), counted(len(chart.rows), "row")
    left = f'<p class="note">{escape(chart.left_out)}</p>' if chart.left_out else ""
    return (
        f'<figure class="chart" id="chart-{name}" data-chart="{name}">'
        f'<figcaption><h3>{escape(chart.title)}</h3><p id="about-{name}">{escape(chart.about)}</p></figcaption>'
        f'<div class="drawing" role="img" aria-label="{escape(chart.title)}" aria-describedby="about-{name}"></div>'
        f'{left}<details class="numbers"><summary>Numbers ({size})</summary></details></figure>'
    )


def facts_html(facts: Mapping[str, str]) -> str:
    """Facts by name, as a list of descriptions."""
    return f"<dl>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in facts.items())}</dl>"


def details_html(summary: str, text: str, file: str = "") -> str:
    """A text that is shown when it is asked for; with the name of a ``file``, it can be saved as one."""
    save = f' data-file="{escape(file)}"' if file else ""
    shown = f'<pre tabindex="0">{escape(text)}</pre>'
    return f'<details class="text"{save}><summary>{escape(summary)}</summary>{shown}</details>'


def charts_json(charts: Sequence[Chart], methods: Sequence[str]) -> str:
    """The charts as JSON that may stand in a script of a page: their specifications, each once, and their data.

    ``methods`` are the labels in their order, which is that of their colours.
    """
    specs: dict[str, int] = {}
    found = {}
    for chart in charts:
        number = specs.setdefault(json.dumps(chart.spec, sort_keys=True), len(specs))
        fields = {"fields": [*chart.columns], "heads": [*chart.columns.values()]}
        found[chart.name] = {"spec": number, "title": chart.title, **fields, "rows": chart.rows}
    return safe_json({"methods": methods, "specs": [json.loads(text) for text in specs], "charts": found})


def safe_json(value: Any) -> str:
    """JSON without a character that could end a script, begin a comment, or break a line of JavaScript."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII only, so without U+2028
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
