"""Checks and bounds of replies, from the section [defence]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedquilt.config.schema import Config
from fedquilt.core.checks import Check, reply_check
from fedquilt.core.defence import Defence
from fedquilt.core.types import Profile
from fedquilt.experiment.features import SITES

SITES_SHARE = 0.5
"""Default limit of a site's share of the total weight: never more than all others together."""


def check_of(config: Config, profiles: Sequence[Profile]) -> Check:
    """The check of every reply by itself."""
    return reply_check(profiles, config.defence)


def bounds_of(config: Config) -> Defence:
    """The bounds of a reply relative to the other replies of its exchange, with their defaults filled in.

    With central privacy the norm bound is off: how a client's update is clipped must not depend on the others.
    """
    ratio, share = config.defence.max_norm_ratio, config.defence.max_weight_share
    if share is None:
        share = SITES_SHARE if config.partition.scheme == SITES else 1.0
    return replace(
        config.defence,
        max_norm_ratio="off" if config.privacy.mode == "central" else ratio,
        max_weight_share=share if share < 1 else None,
    )
