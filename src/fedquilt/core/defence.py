"""Limits on replies of faulty or malicious clients: the section [defence] of a run file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from fedquilt.core.settings import Count, Kept, Rate

RATIO = 10.0
"""Largest ratio of a client's value to the median of its peers, unless a setting says otherwise."""


@dataclass(frozen=True)
class Defence:
    """When a reply is dropped or bounded, and when a round has too few replies.

    Names, shapes, types and ranges of a reply are always checked, and that all numbers are finite.
    """

    max_update_norm: Rate | None = None
    """Largest norm of one client's update, over all its tensors; not bounded if left out."""
    max_norm_ratio: Annotated[float, Ge(1), Le(1e6)] | Literal["off"] = RATIO
    """Largest norm of one client's update (root mean square over its numbers) as a multiple of the median of its
    exchange; longer ones are scaled down to it. The replies of an exchange are then held until the last has arrived;
    ``off`` merges each as it arrives. Not used with ``privacy.mode = "central"``, which clips by itself."""
    max_weight_share: Kept | None = None
    """Largest fraction of the total weight that one client has among the senders of a tensor; heavier ones are lowered,
    and if there are too few senders for that, all have equal weight. If left out 0.5 with ``partition.scheme =
    "sites"``, where sites report their own numbers of rows, and otherwise 1, which is no bound."""
    max_reply_bytes: Count | None = None
    """Largest size of one client's tensors in bytes; only the requested tensors are accepted in any case."""
    min_cohort: Count = 1
    """Smallest number of usable replies of a round, in addition to ``quorum``."""

    @property
    def compares(self) -> bool:
        """Whether replies are compared with each other, so that they must be held until the last has arrived."""
        return self.max_norm_ratio != "off" or self.max_weight_share is not None


UNBOUNDED = Defence(max_norm_ratio="off")
"""No reply is compared with others."""
