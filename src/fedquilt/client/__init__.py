"""What happens on one client: local training, evaluation, and the probes that score layers."""

from fedquilt.client.client import Client
from fedquilt.client.workbench import Workbench
from fedquilt.core.training import Training

__all__ = ["Client", "Training", "Workbench"]
