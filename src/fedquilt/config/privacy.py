"""The section [privacy] of a run file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from fedquilt.config.strict import STRICT
from fedquilt.core.settings import Rate, Seed, Strength


class Privacy(BaseModel):
    """Differential privacy of whole clients; needs the extra ``fedquilt[privacy]``."""

    model_config = STRICT

    mode: Literal["none", "central", "local"] = "none"
    """``central``: the server clips updates and adds noise to their sum. ``local``: each client clips and adds noise
    before anything leaves it."""
    clip_norm: Rate = 1.0
    """Largest norm of one client's update, over all its tensors; longer ones are scaled down to it."""
    noise_multiplier: Strength = 1.0
    """Standard deviation of the noise as a multiple of ``clip_norm``."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta of the guarantee; choose it well below 1 / (number of clients)."""
    client_epsilon: Rate | None = None
    """With ``local``: the total epsilon of a client, at ``delta``, beyond which it refuses; the cost of all rounds of
    the run if left out. Between real sites each site's own ``epsilon`` takes precedence, and once set no run file
    changes it."""
    secure_aggregation: bool = False
    """Not available; see the guide on defence and privacy."""
    test_key: Seed | None = None
    """Makes the noise reproducible, and worthless against anyone who knows the key; for tests."""

    @field_validator("secure_aggregation")
    @classmethod
    def _is_not_to_be_had(cls, wanted: bool) -> bool:
        if wanted:
            raise ValueError(
                "not available: Flower has secure aggregation for its legacy interface only, and it hides each reply "
                "from the checks of [defence]; leave it out, or set privacy.mode = 'local' so that no reply shows the "
                "server a client's own update"
            )
        return wanted
