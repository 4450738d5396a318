"""Curves of a label over the seeds of its runs: means, deviations, and the bytes sent until then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedquilt.report.runs import Run, cumulative_bytes
from fedquilt.report.scores import curve


def mean_curve(runs: Sequence[Run], metric: str, who: str) -> tuple[list[int], np.ndarray, np.ndarray | None, int]:
    """Return the rounds that all runs have measured, the mean and sample deviation (None for one run), and the runs."""
    curves = [dict(zip(*curve(run, metric, who), strict=True)) for run in runs]
    curves = [values for values in curves if values]
    rounds = sorted(set.intersection(*(set(values) for values in curves))) if curves else []
    table = np.array([[values[index] for index in rounds] for values in curves])  # (runs, rounds)
    if not rounds:
        return [], np.array([]), None, 0
    return rounds, table.mean(axis=0), table.std(axis=0, ddof=1) if len(curves) > 1 else None, len(curves)


def mean_bytes(runs: Sequence[Run], rounds: Sequence[int]) -> np.ndarray:
    """Return the bytes that all clients had sent and received by the end of these rounds, means over runs with all."""
    tables = []
    for run in runs:
        at, up, down = cumulative_bytes(run)
        total = {index: u + d for index, u, d in zip(at, up, down, strict=True)}
        if all(index in total for index in rounds):
            tables.append([total[index] for index in rounds])
    mean: np.ndarray = np.mean(tables, axis=0)
    return mean
