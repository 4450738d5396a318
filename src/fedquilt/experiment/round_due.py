"""Which rounds end with an evaluation."""

from __future__ import annotations

from fedquilt.config.schema import Config


def is_due(config: Config, number: int) -> bool:
    """Whether round ``number`` ends with an evaluation."""
    return (number + 1) % config.evaluation.every == 0 or number >= config.rounds - config.evaluation.last
