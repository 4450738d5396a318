"""The section of a run file on messages between sites."""

from __future__ import annotations

from pydantic import BaseModel

from fedquilt.config.kinds import STRICT, Rate


class Network(BaseModel):
    """What travels between server and clients, and how long it may take. The times count on Flower only."""

    model_config = STRICT

    timeout: Rate = 3600.0
    """Seconds that an exchange waits for replies; a client that takes longer is dropped from it."""
    wait: Rate = 300.0
    """Seconds that the clients may take to join before training starts."""
    grace: Rate | None = None
    """Seconds that an exchange still waits for stragglers once ``quorum`` and ``defence.min_cohort`` are met; until
    ``timeout`` if left out."""
