"""Every filter by its name in run files."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedquilt.distill import controls
from fedquilt.distill.learnability import learnability
from fedquilt.distill.selection import Filter, FilterSettings

FILTERS: Mapping[str, Callable[[FilterSettings], Filter]] = {
    "learnability": learnability,
    "linear-ucb": controls.linear_ucb,
    "all": controls.everything,
    "random": controls.uniform,
    "confidence": controls.confidence,
    "loss": controls.student_loss,
    "verified": controls.verified,
    "oracle": controls.oracle,
}


def filter_of(settings: FilterSettings) -> Filter:
    """The filter that the settings name."""
    return FILTERS[settings.name](settings)
