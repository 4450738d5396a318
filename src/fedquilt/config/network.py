"""The section of a run file on messages between sites."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from fedquilt.config.kinds import STRICT, Rate


class Network(BaseModel):
    """What travels between server and clients, and how long it may take. The times count on Flower only."""

    model_config = STRICT

    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """What tensors travel as, both ways and on every engine; ``float32`` sends them as they are. What rounding takes
    from a client's update is added to its next (but not with ``privacy.mode = "central"``)."""
    timeout: Rate = 3600.0
    """Seconds that an exchange waits for replies; a client that takes longer is dropped from it."""
    wait: Rate = 300.0
    """Seconds that the clients may take to join before training starts."""
    grace: Rate | None = None
    """Seconds that an exchange still waits for stragglers once ``quorum`` and ``defence.min_cohort`` are met; until
    ``timeout`` if left out."""
