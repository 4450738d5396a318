"""Checks and bounds of replies, from the section [defence]."""

from __future__ import annotations

from collections.abc import Sequence

from fedquilt.config.schema import Config
from fedquilt.core.bounds import Bounds
from fedquilt.core.checks import Check, Limits, reply_check
from fedquilt.core.types import Profile
from fedquilt.experiment.data import SITES

SITES_SHARE = 0.5
"""Default limit of a site's share of the total weight: never more than all others together."""


def check_of(config: Config, profiles: Sequence[Profile]) -> Check:
    """The check of every reply by itself."""
    return reply_check(profiles, Limits(config.defence.max_update_norm, config.defence.max_reply_bytes))


def bounds_of(config: Config) -> Bounds:
    """The bounds of a reply relative to the other replies of its exchange.

    With central privacy the norm bound is off: how a client's update is clipped must not depend on the others.
    """
    ratio, share = config.defence.max_norm_ratio, config.defence.max_weight_share
    if share is None:
        share = SITES_SHARE if config.partition.scheme == SITES else 1.0
    off = ratio == "off" or config.privacy.mode == "central"
    return Bounds(None if off else float(ratio), share if share < 1 else None)
