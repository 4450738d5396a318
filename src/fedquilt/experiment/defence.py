"""What replies are held to, as a config says it in [defence]."""

from __future__ import annotations

from collections.abc import Sequence

from fedquilt.config.schema import Config
from fedquilt.core.bounds import Bounds
from fedquilt.core.checks import Check, Limits, reply_check
from fedquilt.core.types import Profile
from fedquilt.experiment.data import SITES

SITES_SHARE = 0.5
"""The largest share of the weights that a site has by default: never more than all others together."""


def check_of(config: Config, profiles: Sequence[Profile]) -> Check:
    """What every reply is held to."""
    return reply_check(profiles, Limits(config.defence.max_update_norm, config.defence.max_reply_bytes))


def bounds_of(config: Config) -> Bounds:
    """What every reply is held to among those of its exchange.

    With central privacy what becomes of a client's update must not depend on the others': it is clipped by itself.
    """
    ratio, share = config.defence.max_norm_ratio, config.defence.max_weight_share
    if share is None:
        share = SITES_SHARE if config.partition.scheme == SITES else 1.0
    off = ratio == "off" or config.privacy.mode == "central"
    return Bounds(None if off else float(ratio), share if share < 1 else None)
