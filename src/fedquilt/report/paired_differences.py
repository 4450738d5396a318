"""Paired differences to a reference, seed by seed, where both had the same partition of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.report.groups import group_values
from fedquilt.report.runs import Run
from fedquilt.report.table import MEASURES, Groups, Row, by_seed, deviation, mean, shared_metric, summary

HONEST = (
    '"separates" means: at least 3 shared seeds, and 0 outside the 95 % Student interval of the mean paired difference '
    "(4.3 standard errors with 3 seeds, 2.8 with 5, 2.3 with 10). Of 20 equal methods, one is expected to separate."
)


def paired_rows(
    groups: Groups,
    references: Sequence[str],
    measure: str = "global",
    last: int | None = None,
    metric: str | None = None,
    group: str | None = None,
) -> list[Row]:
    """Compare every other label with the first of ``references`` that had the same partition, seed by seed.

    Let d_s = (last-k mean of the label) - (last-k mean of the reference) at each of the n seeds s at which both have
    the same partition. Then ``difference`` = mean d and ``standard_error`` = deviation(d) / sqrt(n). ``verdict`` is
    ``too few seeds`` if n < 3, ``separates`` if |mean d| > t standard errors (t: the 97.5 % quantile of Student's
    distribution with n - 1 degrees of freedom), otherwise ``within noise``. A label that shares no partition with a
    reference has no row.

    Parameters
    ----------
    groups
        Runs by label.
    references
        The labels to compare with, in order of preference.
    measure
        One of ``table.MEASURES``.
    last
        The number of last evaluated rounds to average; by default ``evaluation.last`` of the run.
    metric
        The metric to compare; by default the main metric of the first run.
    group
        Compare the scores of this group (``global`` or ``personalised``) only; ``groups.WORST`` is the worst group of
        each run.

    Raises
    ------
    ConfigError
        if a reference is not a label, or there is no such measure.
    RunError
        if a label has no run, or two runs of one seed.
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
    """Return the verdict on paired differences: ``separates``, ``within noise`` or ``too few seeds``."""
    if len(gaps) < 3:
        return "too few seeds"
    from scipy.special import stdtrit  # takes a tenth of a second to import, and most commands never need it

    bound = float(stdtrit(len(gaps) - 1, 0.975)) * np.std(gaps, ddof=1) / math.sqrt(len(gaps))
    return "separates" if abs(np.mean(gaps)) > bound else "within noise"


def alone(groups: Groups, references: Sequence[str]) -> list[str]:
    """Return sentences on labels that are compared with no reference, because none had their partition."""
    left = [label for label in groups if label not in references and _partner(groups, label, references)[0] is None]
    return [f"{label}: no reference had the same partition, so it is compared with none." for label in left]


def _partner(groups: Groups, label: str, references: Sequence[str]) -> tuple[str | None, list[int | None]]:
    """Return the first reference that had the label's partition at some seed, and these seeds."""
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
    """Return the measure of each of a label's runs, by seed."""
    if group is None:
        return {run.seed: summary(run, last, metric)[measure] for run in runs}
    ended = group_values(runs, metric, last).get(group) or [{} for _ in runs]
    return {run.seed: one.get(measure) for run, one in zip(runs, ended, strict=True)}
