"""The client's side: local training, evaluation, and Fisher scores of layers."""

from fedquilt.client.client import Client
from fedquilt.client.workbench import Workbench
from fedquilt.core.training import Training

__all__ = ["Client", "Training", "Workbench"]
