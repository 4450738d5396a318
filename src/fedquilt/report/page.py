"""The HTML report: one self-contained file with tables, interactive charts, and how to make the runs again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from fedquilt.core.disk import write_bytes
from fedquilt.core.errors import RunError
from fedquilt.report.charts import Chart
from fedquilt.report.columns import counted, human_bytes, human_metric
from fedquilt.report.document import document
from fedquilt.report.html import chart_html, charts_json, details_html, facts_html
from fedquilt.report.runs import Run, client_table
from fedquilt.report.scores import LOWER_IS_BETTER
from fedquilt.report.sections import Section, sections
from fedquilt.report.setup import commands, facts
from fedquilt.report.table import Groups, compare_rows

_MOST_TEXT = 200_000
"""The largest number of characters of a text on the page."""

_KEYS = ("run_key", "cohort_key")
"""What of a run's environment is of its server and sites alone: a page is shown to others, also before it ends."""

_MOST_RUNS = 60
"""The largest number of runs whose config and environment are on the page."""


def page(
    groups: Groups,
    last: int | None = None,
    references: Sequence[str] = (),
    title: str | None = None,
) -> str:
    """Return the report of ``groups`` (runs by label) as HTML; all text from the runs is escaped.

    The same runs give the same text, and nothing is read but what is given.

    Parameters
    ----------
    groups
        Runs by label.
    last
        The number of last evaluated rounds to average; by default ``evaluation.last`` of the run.
    references
        The labels that others are compared with.
    title
        The page's title; by default the name of the first run.

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
    found = [
        (Section("run", "What was run", [*_setup(groups)]), ()),
        *sections(groups, last, references),
        (Section("made", "How it was made", [*_made(groups)]), ()),
    ]
    charts = [part for one, more in found for part in (*one.parts, *more) if isinstance(part, Chart)]
    links = "".join(f'<li><a href="#{one.id}">{escape(one.heading)}</a></li>' for one, _ in found)
    state = "finished" if all(run.finished for run in runs) else "unfinished"
    body = (
        '<a class="skip" href="#main">Skip to the content</a>\n'
        f'<header class="top"><div><h1>{escape(title)}</h1><p>{escape(_subtitle(groups))} '
        f'<span class="badge {state}">{state}</span></p></div>'
        '<button type="button" class="theme" hidden>Dark theme</button></header>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="main">\n'
        '<noscript><p class="note">Charts need JavaScript, which is off; the tables do not.</p></noscript>\n'
        f"{_tiles(groups, last)}\n{''.join(_section(one) for one, _ in found)}</main>\n"
        f"<footer><p>Written by fedquilt from {counted(len(runs), 'run folder')}; this file reaches "
        "no network.</p></footer>"
    )
    return document(title, body, charts_json(charts, [*groups]))


def _section(one: Section) -> str:
    """A section, with neighbouring charts side by side."""
    parts = []
    for part in one.parts:
        if isinstance(part, Chart):
            parts.append(chart_html(part))
        else:
            parts.append(f'<div class="part">{part}</div>')
    inside = "\n".join(parts)
    return (
        f'<section id="{one.id}" aria-labelledby="{one.id}-heading"><h2 id="{one.id}-heading">{escape(one.heading)}'
        f'</h2><div class="parts">\n{inside}\n</div></section>\n'
    )


def _subtitle(groups: Groups) -> str:
    labels = [*groups]
    named = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
    seeds = sorted({str(run.seed) for runs in groups.values() for run in runs})
    return f"{named}; seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds[:10])}{', ...' if len(seeds) > 10 else ''}"


def _tiles(groups: Groups, last: int | None) -> str:
    """The numbers of the best label, or of the only one, that most readers look for."""
    rows = compare_rows(groups, last)
    metric = rows[0]["metric"]
    runs = [run for members in groups.values() for run in members]
    tiles = {
        "final model": human_metric(rows[0]["final"], metric),
        "clients' mean": human_metric(rows[0]["personalised"], metric),
        "worst client": human_metric(rows[0]["worst_client"], metric),
        "sent and received": human_bytes(rows[0]["bytes_up"] + rows[0]["bytes_down"]),
        "epsilon": "-" if rows[0]["epsilon"] is None else f"{rows[0]['epsilon']:.2f}",
        "dropped replies": str(rows[0]["dropped"]),
    }
    if len(rows) > 1:
        tiles = {"methods": str(len(rows)), "runs": str(len(runs))}
        for title, measure in (("best final model", "final"), ("best clients' mean", "personalised")):
            known = [row for row in rows if row[measure] is not None]
            if known:
                best = (min if metric in LOWER_IS_BETTER else max)(known, key=lambda row: float(row[measure]))
                tiles[f"{title}: {best['label']}"] = human_metric(best[measure], metric)
        tiles["dropped replies"] = str(sum(row["dropped"] for row in rows))
    tiles = {"clients": f"{len(client_table(runs[0])):,}", "rounds": str(rows[0]["rounds"]), **tiles}
    shown = {
        name: f"{value} %" if metric == "accuracy" and _is_score(name) else value
        for name, value in tiles.items()
        if value != "-"
    }
    return f'<div class="tiles">{facts_html(shown)}</div>'


def _is_score(name: str) -> bool:
    return any(word in name for word in ("model", "mean", "worst"))


def _setup(groups: Groups) -> Iterator[str]:
    yield f'<div class="facts">{facts_html(facts(groups))}</div>'
    again = [*commands(groups)]
    few = again[:_MOST_RUNS]
    lines = "\n".join(one.command for one in few)
    left = f"; the first {len(few)} of {len(again)} are listed" if len(again) > len(few) else ""
    yield (
        f"<h3>Run it again</h3><p>Save the run file{'s' if len(few) > 1 else ''} below, then run{escape(left)}:</p>"
        f'<pre class="command" tabindex="0">{escape(lines)}</pre>'
    )
    seen: dict[str, str] = {one.file: one.text for one in few}
    yield "".join(details_html(file, _cut(text), file) for file, text in seen.items())


def _made(groups: Groups) -> Iterator[str]:
    """The config and the environment of each run."""
    runs = [(label, run) for label, members in groups.items() for run in members]
    yield "".join(
        details_html(f"{label}, seed {run.seed}: {what}", _plain(run, what))
        for label, run in runs[:_MOST_RUNS]
        for what in ("config", "environment")
    )
    if len(runs) > _MOST_RUNS:
        yield f'<p class="note">The first {_MOST_RUNS} of {len(runs)} runs; each folder has its own.</p>'


def _plain(run: Run, what: str) -> str:
    shown = {name: value for name, value in getattr(run, what).items() if name not in _KEYS}
    return _cut(json.dumps(shown, indent=2, ensure_ascii=False, default=str))


def _cut(text: str) -> str:
    more = len(text) - _MOST_TEXT
    return text if more <= 0 else f"{text[:_MOST_TEXT]}\n... {more:,} more characters, which the run folder has"


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
        write_bytes(path, text.encode("utf-8"))
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}). Give another path for the page."
        ) from error
    return path
