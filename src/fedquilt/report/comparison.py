"""The complete comparison of labelled runs as one text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from fedquilt.core.errors import ConfigError
from fedquilt.report.caveats import notes
from fedquilt.report.groups import WORST, group_rows
from fedquilt.report.lessons import LESSONS, lesson_rows
from fedquilt.report.paired_differences import HONEST, alone, paired_rows
from fedquilt.report.parties import JOINT, WITHOUT, joint_rows, missing_rows
from fedquilt.report.table import Groups, Row, as_markdown, as_text, compare_rows, shared_metric

_BULLET: dict[str, Any] = {
    "initial_indent": "- ",
    "subsequent_indent": "  ",
    "break_long_words": False,
    "break_on_hyphens": False,
}


def comparison(groups: Groups, last: int | None = None, references: Sequence[str] = (), form: str = "text") -> str:
    """Return the comparison as one text: table, paired differences to ``references``, and caveats.

    ``form`` is ``text`` or ``markdown``.

    Raises
    ------
    ConfigError
        for another form, or a reference that is not a label.
    """
    if form not in ("text", "markdown"):
        raise ConfigError(f"form = {form!r} is not known; allowed: text, markdown.")
    show = as_markdown if form == "markdown" else as_text
    metric = shared_metric(groups)
    parts = [show(compare_rows(groups, last))]
    if of_groups := group_rows(groups, metric, last):
        parts += ["Group by group:", show(of_groups)]
    if of_students := lesson_rows(groups):
        parts += [f"{LESSONS}:", show(of_students)]
    for heading, of_parties in ((JOINT, joint_rows(groups, last)), (WITHOUT, missing_rows(groups, last))):
        parts += [f"{heading}:", show(of_parties)] if of_parties else []
    parts += [part for what, rows in paired(groups, references, last) for part in (f"{what} {metric}:", show(rows))]
    honest = [HONEST, *alone(groups, references)] if references else []
    remarks = [meaning(metric), *honest, *notes(groups, last)]
    if form == "markdown":
        remarks = [textwrap.fill(remark, 120, **_BULLET) for remark in remarks]
    parts.append("\n".join(remarks))
    return "\n\n".join(parts) + "\n"


def meaning(metric: str) -> str:
    """Explain the numbers of a comparison."""
    unit = "per cent" if metric == "accuracy" else "as measured"
    return (
        f"{metric.capitalize()} ({unit}): means over seeds, ± the sample standard deviation over seeds. 'final model' "
        "is the model at the end of a run, which is exported; 'last k' is the mean over the last k evaluated rounds, "
        "as are all other scores; 'within run' is the standard deviation over these rounds inside a run."
    )


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
