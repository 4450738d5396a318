"""What a run file says on when and on what models are evaluated."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from fedquilt.config.value_types import STRICT, Count


class Evaluation(BaseModel):
    """When and on what the models are evaluated."""

    model_config = STRICT

    every: Count = 1
    """Rounds from one evaluation to the next; the last round is always evaluated."""
    batch_size: Count = 256
    """Examples in one forward pass."""
    limit: Count | None = None
    """Test rows used in the global evaluation; all if left out."""
    clients: bool | Literal["received"] = True
    """Evaluate every client on its own test rows too: after the round, or with ``"received"`` each client of the cohort
    what it receives, before it trains, and all clients the final model once at the end. Between real sites it is always
    the latter: the scores ride in the replies."""
    last: Count = 5
    """Evaluated rounds at the end over which every report takes mean and deviation, unless it is asked for others."""
