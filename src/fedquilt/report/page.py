"""The HTML report: one self-contained file with tables, plots, configs and environments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import RunError
from fedquilt.report.caveats import notes
from fedquilt.report.comparison import meaning, paired
from fedquilt.report.figure import png
from fedquilt.report.groups import group_rows
from fedquilt.report.html import picture_html, table_html
from fedquilt.report.lessons import LESSONS, lesson_rows
from fedquilt.report.paired_differences import HONEST, alone
from fedquilt.report.parties import JOINT, WITHOUT, joint_rows, missing_rows
from fedquilt.report.plot import figures
from fedquilt.report.runs import client_names, dropped
from fedquilt.report.scores import main_metric
from fedquilt.report.table import Groups, Row, cells, compare_rows, summary

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e5e5e5; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #999; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: 13px; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 12px; } summary { cursor: pointer; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # makes the browser block network access


def page(groups: Groups, last: int | None = None, references: Sequence[str] = (), title: str | None = None) -> str:
    """Return the report of ``groups`` (runs by label) as HTML; all text from the runs is escaped.

    Raises
    ------
    RunError
        if no run was given.
    ConfigError
        if one of ``references`` is not a label.
    """
    runs = [run for members in groups.values() for run in members]
    if not runs:
        raise RunError("no run was given, so there is no page to write. Give at least one run folder.")
    title = title or runs[0].name
    parts = [f"<h1>{escape(title)}</h1>"]
    inside = "In the table of runs, ± is the standard deviation over these rounds."
    parts.append(f"<p>{escape(meaning(main_metric(runs[0])))} {inside}</p>")
    parts += ["<h2>Comparison</h2>", _table(compare_rows(groups, last))]
    if of_groups := group_rows(groups, main_metric(runs[0]), last):
        parts += ["<h2>Group by group</h2>", _table(of_groups)]
    if of_students := lesson_rows(groups):
        parts += [f"<h2>{escape(LESSONS)}</h2>", _table(of_students)]
    for heading, of_parties in ((JOINT, joint_rows(groups, last)), (WITHOUT, missing_rows(groups, last))):
        parts += [f"<h2>{escape(heading)}</h2>", _table(of_parties)] if of_parties else []
    parts += [f"<p>{escape(note)}</p>" for note in notes(groups, last)]
    for what, rows in paired(groups, references, last):
        parts += [f"<h2>{escape(what)}</h2>", _table(rows)]
    if references:
        parts += [f"<p>{escape(remark)}</p>" for remark in (HONEST, *alone(groups, references))]
    parts += ["<h2>Runs</h2>", _table([summary(run, last) for run in runs])]
    parts.append("<h2>Plots</h2>")
    parts += [picture_html(name, png(figure)) for name, figure in figures(groups)]
    losses = [
        [label, str(run.seed), str(loss["round"] + 1), loss["exchange"], names[loss["client"]], loss["reason"]]
        for label in groups
        for run in groups[label]
        for names in [client_names(run)]
        for loss in dropped(run)
    ]
    if losses:
        head = ["method", "seed", "round", "exchange", "client", "reason"]
        parts += ["<h2>Dropped replies</h2>", table_html([head, *losses])]
    parts.append("<h2>How it was made</h2>")
    for label, members in groups.items():
        for run in members:
            parts.append(_details(f"{label}, seed {run.seed}: config", run.config))
            parts.append(_details(f"{label}, seed {run.seed}: environment", run.environment))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def write_page(
    groups: Groups, path: str | Path, last: int | None = None, references: Sequence[str] = (), title: str | None = None
) -> Path:
    """Write the page (UTF-8) and return its path.

    Parameters
    ----------
    groups
        Runs by label.
    path
        The file to write.
    last
        The number of last evaluated rounds to average; by default ``evaluation.last`` of the run.
    references
        The labels that others are compared with.
    title
        The page's title; by default the name of the first run.

    Raises
    ------
    RunError
        if the file cannot be written, or no run was given.
    """
    path = Path(path)
    text = page(groups, last, references, title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error}). Give another path for the page.") from error
    return path


def _table(rows: Sequence[Row]) -> str:
    return table_html(cells(rows))


def _details(title: str, value: Mapping[str, Any]) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
