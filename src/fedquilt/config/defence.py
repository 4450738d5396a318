"""The section of a run file on clients that are wrong or malicious."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fedquilt.config.value_types import STRICT, Count, Rate


class Defence(BaseModel):
    """When a reply is dropped or bounded, and when a round has too few of them.

    Names, shapes, types, and that all numbers are finite and within what they mean, are always checked.
    """

    model_config = STRICT

    max_update_norm: Rate | None = None
    """Largest norm of one client's update, over all its tensors; not bounded if left out."""
    max_norm_ratio: Annotated[float, Field(ge=1, le=1e6)] | Literal["off"] = 10.0
    """How many times as long as the median of its exchange one client's update may be (root mean square over its
    numbers); longer ones are scaled down to that. The replies of an exchange are then held until the last is there;
    ``off`` merges each as it comes. Not used with ``privacy.mode = "central"``, which clips by itself."""
    max_weight_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share that one client has of the weights of those who send a tensor; heavier ones weigh less, and where
    they are too few for any share, all weigh alike. If left out 0.5 with ``partition.scheme = "sites"``, where each
    says itself how many rows it has, and 1, which is no bound, elsewhere."""
    max_reply_bytes: Count | None = None
    """Largest size of one client's tensors; only what was asked for is taken in any case."""
    min_cohort: Count = 1
    """Usable replies that a round needs, beside ``quorum``."""
