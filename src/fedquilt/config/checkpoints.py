"""The section of a run file on what a run can go back to."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from fedquilt.config.value_types import STRICT


class Checkpoints(BaseModel):
    """What a run can go back to, with ``fedquilt run --resume RUN --from ROUND``."""

    model_config = STRICT

    keep: Annotated[int, Field(ge=2, le=1000)] = 2
    """Checkpoints of the last rounds that are kept; the last one whose scores were all finite is kept besides."""
