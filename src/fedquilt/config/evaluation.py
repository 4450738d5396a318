"""The section [evaluation] of a run file."""

from __future__ import annotations

from pydantic import BaseModel

from fedquilt.config.strict import STRICT
from fedquilt.core.evaluated import Who
from fedquilt.core.settings import Count


class Evaluation(BaseModel):
    """When and on what the models are evaluated."""

    model_config = STRICT

    every: Count = 1
    """Rounds between evaluations; the last round is always evaluated."""
    batch_size: Count = 256
    """Examples in one forward pass."""
    limit: Count | None = None
    """Number of test rows in the global evaluation; all if left out."""
    clients: Who = "auto"
    """Which clients are evaluated on their own test rows: after a round all of them (true), or those that took part in
    it (``"cohort"``); none (false). ``"auto"`` is true for at most 100 clients, and else ``"cohort"``. With
    ``"received"``, each client of the cohort evaluates the model that it receives before it trains, and all clients
    evaluate the final model once at the end; between real sites it is so unless this is false, and the scores are sent
    in the replies."""
    last: Count = 5
    """Number of last evaluated rounds over which reports take mean and deviation."""
