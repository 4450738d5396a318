"""Which clients are evaluated on their own test rows after a round."""

from __future__ import annotations

from typing import Literal

Who = bool | Literal["auto", "cohort", "received"]
"""All clients, none, or as ``config.evaluation.Evaluation.clients`` explains."""

FEW = 100
"""The largest number of clients that ``"auto"`` evaluates all."""


def without_auto(who: Who, num_clients: int) -> bool | Literal["cohort", "received"]:
    """Which of so many clients are evaluated, where ``"auto"`` leaves it to their number."""
    return who if who != "auto" else num_clients <= FEW or "cohort"
