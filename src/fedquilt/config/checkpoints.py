"""The section [checkpoints] of a run file."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from fedquilt.config.strict import STRICT


class Checkpoints(BaseModel):
    """Checkpoints that a run can return to with ``fedquilt run --resume RUN --from ROUND``."""

    model_config = STRICT

    keep: Annotated[int, Field(ge=2, le=1000)] = 2
    """Number of checkpoints of the last rounds to keep; the last one with finite scores is kept as well."""
