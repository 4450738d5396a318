"""Strictness of sections of a run file; the types of values are in ``fedquilt.core.settings``."""

from __future__ import annotations

from pydantic import ConfigDict

from fedquilt.core.settings import (
    LARGEST,
    MOST,
    Count,
    Factor,
    Few,
    FromRound,
    Kept,
    Layers,
    Members,
    Part,
    Penalty,
    Rank,
    RankOrZero,
    Rate,
    Rounds,
    Seed,
    Share,
    Strength,
    Text,
    Tokens,
    Whole,
    With,
    Written,
)

__all__ = [
    "LARGEST",
    "MOST",
    "STRICT",
    "Count",
    "Factor",
    "Few",
    "FromRound",
    "Kept",
    "Layers",
    "Members",
    "Part",
    "Penalty",
    "Rank",
    "RankOrZero",
    "Rate",
    "Rounds",
    "Seed",
    "Share",
    "Strength",
    "Text",
    "Tokens",
    "Whole",
    "With",
    "Written",
]

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
