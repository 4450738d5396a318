"""Base models that nobody could load by their name outside fedquilt, so that an exported adapter brings its base."""

from __future__ import annotations

BUILTIN = (
    "glyph-vit",
    "glyph-vit-4x32",
    "glyph-vit-8x48",
    "arith-llama",
    "arith-gemma",
    "arith-qwen",
    "arith-llama-12x112",
)
"""Names of pretrained models inside this package."""

BASE = "base"
"""The folder of the base inside an exported adapter's."""


def is_enclosed(name: str) -> bool:
    """Whether a base is a model of this package, or of random weights that follow from a run's seed."""
    return name.partition("?")[0] in BUILTIN or name.startswith("tiny:")
