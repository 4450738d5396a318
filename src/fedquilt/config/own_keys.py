"""The keys of a section that a group or the server sets itself; the section's other keys are the run file's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from fedquilt.adapters.settings import Adapter
from fedquilt.config.sections import keys_apart
from fedquilt.core.training import Training

if TYPE_CHECKING:
    OwnAdapter = BaseModel
    OwnTraining = BaseModel
else:
    OwnAdapter = keys_apart(Adapter)
    """Keys of [adapter]; they are checked against the kind when both are known."""
    OwnTraining = keys_apart(Training)
    """Keys of [training]; steps and epochs are checked once both are known."""
