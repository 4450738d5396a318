"""The complete comparison of labelled runs as one text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fedquilt.core.errors import ConfigError
from fedquilt.report.caveats import notes
from fedquilt.report.columns import COMPARED, filled
from fedquilt.report.groups import WORST, group_rows
from fedquilt.report.layout import wrapped
from fedquilt.report.lessons import LESSONS, lesson_rows
from fedquilt.report.paired_differences import HONEST, alone, paired_rows
from fedquilt.report.parties import of_parties
from fedquilt.report.table import Groups, Row, as_markdown, as_text, compare_rows, shared_metric

COST = "Cost of a run, mean over seeds"
"""The heading of the table of costs."""

_PROSE = 120  # columns of Markdown


def comparison(
    groups: Groups,
    last: int | None = None,
    references: Sequence[str] = (),
    form: str = "text",
    width: int | None = None,
) -> str:
    """Return the comparison as one text: tables, paired differences, what the columns mean, and caveats.

    Parameters
    ----------
    groups
        Runs by label.
    last
        The number of last evaluated rounds to average; by default ``evaluation.last`` of the run.
    references
        The labels that others are compared with, seed by seed.
    form
        ``text`` or ``markdown``.
    width
        The number of characters of a line of text; None for as many as the longest row has.

    Raises
    ------
    ConfigError
        for another form, or a reference that is not a label.
    """
    if form not in ("text", "markdown"):
        raise ConfigError(f"form = {form!r} is not known; allowed: text, markdown.")
    show: Callable[..., str] = as_markdown if form == "markdown" else partial(as_text, width=width)
    metric = shared_metric(groups)
    rows = compare_rows(groups, last)
    parts = []
    for whose, names, values in COMPARED:
        if filled(rows, values):
            heading = f"{named(metric)} {whose}" if whose else COST
            parts += [f"{heading}:", show(rows, columns=(*names, *values))]
    others = [("Group by group", group_rows(groups, metric, last)), (LESSONS, lesson_rows(groups))]
    others += of_parties(groups, last)
    others += [(f"{what} {metric}", paired_ones) for what, paired_ones in paired(groups, references, last)]
    others = [(heading, found) for heading, found in others if found]
    parts += [part for heading, found in others for part in (f"{heading}:", show(found))]
    honest = [HONEST, *alone(groups, references)] if references else []
    meanings = [f"{title}: {what}" for title, what in legend(rows, *(found for _, found in others)).items()]
    remarks = [meaning(metric), *meanings, *honest, *notes(groups, last)]
    parts.append("\n".join(wrapped(remark, _PROSE if form == "markdown" else width, "- ") for remark in remarks))
    return "\n\n".join(parts) + "\n"


def named(metric: str) -> str:
    """A metric at the beginning of a heading, with its unit."""
    return f"{metric.capitalize()} (per cent)" if metric == "accuracy" else metric.capitalize()


def meaning(metric: str) -> str:
    """Explain the numbers of a comparison."""
    return (
        f"{named(metric)}: mean over seeds ± the sample standard deviation over seeds (std). 'final' is the model at "
        "the end of a run, which is exported; 'last k' is the mean over the last k evaluated rounds, as are all other "
        "scores."
    )


def legend(*tables: Sequence[Row]) -> dict[str, str]:
    """What the columns of these tables mean, by their titles."""
    return {column.title: column.meaning for rows in tables for column in filled(rows) if column.meaning}


def paired(groups: Groups, references: Sequence[str], last: int | None = None) -> list[tuple[str, list[Row]]]:
    """Return headings and rows of the paired differences that were measured.

    These are the differences in global and in personalised scores, over all clients and for the worst group.
    """
    if not references:
        return []
    found = []
    for group in (None, WORST):
        for measure in ("global", "personalised"):
            rows = [row for row in paired_rows(groups, references, measure, last, group=group) if row["seeds"]]
            if rows:
                whose = "" if group is None else f"{group}, "
                found.append((f"Paired over seeds against {' and '.join(references)}, {whose}{measure}", rows))
    return found
