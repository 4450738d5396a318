"""Records of gradient alignment: conflicts between groups over rounds, and mean cosines between groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedquilt.report.runs import Run


class Alignment(NamedTuple):
    """What a run recorded of one alignment.

    Attributes
    ----------
    rounds
        The recorded rounds.
    conflicts
        The number of conflicts in each of them.
    cosines
        (groups, groups): the mean cosine of two groups' updates over the rounds in which both took part, NaN if there
        is none; None where there were too many groups to record them.
    names
        The groups' names.
    """

    rounds: list[int]
    conflicts: np.ndarray
    cosines: np.ndarray | None
    names: tuple[str, ...]


def alignments(run: Run) -> dict[str, Alignment]:
    """Return the alignments of a run by architecture; a single alignment across all clients has the name ""."""
    kept: dict[str, list[tuple[int, int, list[float]]]] = {}
    for line in run.rounds:
        state = line.get("state") or {}
        conflicts, cosines = state.get("conflicts"), state.get("cosines")
        if isinstance(conflicts, int):
            conflicts, cosines = {"": conflicts}, {"": cosines}
        for name, number in (conflicts or {}).items():
            kept.setdefault(name, []).append((line["round"], number, (cosines or {}).get(name) or []))
    return {name: _alignment(run, name, lines) for name, lines in kept.items()}


def _alignment(run: Run, architecture: str, lines: list[tuple[int, int, list[float]]]) -> Alignment:
    rounds, conflicts = [number for number, _, _ in lines], np.array([found for _, found, _ in lines])
    size = math.isqrt(min(len(flat) for _, _, flat in lines))
    if not size:
        return Alignment(rounds, conflicts, None, ())
    tables = np.array([flat for _, _, flat in lines], dtype=float).reshape(len(lines), size, size)
    tables[tables == 0] = np.nan  # an absent group is recorded as zeros
    there = ~np.isnan(tables)
    total = np.where(there, tables, 0).sum(axis=0)
    mean = np.divide(total, there.sum(axis=0), out=np.full((size, size), np.nan), where=there.any(axis=0))
    return Alignment(rounds, conflicts, mean, _names(run, architecture, size))


def _names(run: Run, architecture: str, size: int) -> tuple[str, ...]:
    """Return the groups' names in the order of the alignment; numbers where the run does not record names."""
    groups = run.partition.get("groups") or []
    clients: list[Mapping[str, Any]] = run.partition.get("clients") or []
    rule = run.config.get("aggregation") or {}
    if rule.get("align", "none") == "none":  # the method's own alignment, which is between architectures
        names = sorted({group["architecture"] for group in groups})
    elif rule.get("align_groups") == "group":
        names = sorted(group["label"] for group in groups if architecture in ("", group["architecture"]))
    else:
        own = {group["label"] for group in groups if architecture in ("", group["architecture"])}
        names = [f"client {one.get('name') or one['id']}" for one in clients if not groups or one.get("group") in own]
    return tuple(names) if len(names) == size else tuple(str(number) for number in range(size))
