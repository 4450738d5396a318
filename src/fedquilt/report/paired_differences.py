"""Labels against a reference, seed by seed, where both had the same split of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.report.groups import group_values
from fedquilt.report.runs import Run
from fedquilt.report.table import MEASURES, Groups, Row, by_seed, deviation, mean, shared_metric, summary

HONEST = (
    '"separates" means: at least 3 shared seeds, and 0 outside the 95 % Student interval of the mean paired difference '
    "(4.3 standard errors with 3 seeds, 2.8 with 5, 2.3 with 10). Of 20 equal methods one is expected to pass."
)


def paired_rows(
    groups: Groups,
    references: Sequence[str],
    measure: str = "global",
    last: int | None = None,
    metric: str | None = None,
    group: str | None = None,
) -> list[Row]:
    """Every other label against the first of ``references`` that had the same split of the data, seed by seed.

    With d_s = (last-k mean of the label) - (of the reference) at a seed s of n at which the split is the same:
    ``difference`` = mean d, ``standard_error`` = deviation(d) / sqrt(n), ``verdict`` is ``separates`` where n >= 3 and
    |mean d| > t standard errors (t: the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom),
    ``within noise`` where n >= 3 and it is not, ``too few seeds`` where n < 3. A label whose splits are no reference's
    has no row. With ``group``, what is compared is that group's ``global`` or ``personalised``; ``by_group.WORST`` is
    the worst of each run.

    Raises:
        ConfigError: no such label or measure.
        RunError: a label without a run, or with two runs of one seed.
    """
    named = [("reference", word, list(groups)) for word in references]
    for what, word, allowed in (*named, ("measure", measure, list(MEASURES))):
        if word not in allowed:
            raise ConfigError(
                f"{what} = {word!r} is not known{suggestion(word, allowed)}; one of: {', '.join(allowed)}."
            )
    metric = metric or shared_metric(groups)
    values = {label: _values(runs, measure, last, metric, group) for label, runs in groups.items()}
    rows = []
    for label in groups:
        if label in references:
            continue
        reference, seeds = _partner(groups, label, references)
        if reference is None:
            continue
        pairs = [(values[label][seed], values[reference][seed]) for seed in seeds]
        gaps = [left - right for left, right in pairs if left is not None and right is not None]
        spread = deviation(gaps)
        row: Row = {"label": label, "reference": reference, "measure": measure, "metric": metric, "group": group}
        row |= {"seeds": len(gaps), "difference": mean(gaps), "verdict": verdict(gaps)}
        rows.append(row | {"standard_error": None if spread is None else spread / math.sqrt(len(gaps))})
    return rows


def verdict(gaps: Sequence[float]) -> str:
    """What may be said of paired differences: ``separates``, ``within noise`` or ``too few seeds``."""
    if len(gaps) < 3:
        return "too few seeds"
    bound = float(stats.t.ppf(0.975, len(gaps) - 1)) * np.std(gaps, ddof=1) / math.sqrt(len(gaps))
    return "separates" if abs(np.mean(gaps)) > bound else "within noise"


def alone(groups: Groups, references: Sequence[str]) -> list[str]:
    """Sentences on labels that are compared with no reference, because none had their split of the data."""
    left = [label for label in groups if label not in references and _partner(groups, label, references)[0] is None]
    return [f"{label}: no reference had its split of the data, so it is compared with none." for label in left]


def _partner(groups: Groups, label: str, references: Sequence[str]) -> tuple[str | None, list[int | None]]:
    """The first reference that had the label's split at some seed, and these seeds."""
    ours = by_seed(label, groups[label])
    for reference in references:
        theirs = by_seed(reference, groups[reference])
        same = [seed for seed in ours if seed in theirs and _split(ours[seed]) == _split(theirs[seed])]
        if same:
            return reference, same
    return None, []


def _split(run: Run) -> str | None:
    digest: str | None = run.partition.get("digest")
    return digest


def _values(
    runs: Sequence[Run], measure: str, last: int | None, metric: str, group: str | None
) -> dict[int | None, float | None]:
    """By seed what a label's runs ended with."""
    if group is None:
        return {run.seed: summary(run, last, metric)[measure] for run in runs}
    ended = group_values(runs, metric, last).get(group) or [{} for _ in runs]
    return {run.seed: one.get(measure) for run, one in zip(runs, ended, strict=True)}
