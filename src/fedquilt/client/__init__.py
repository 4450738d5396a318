"""What happens on one client: local training, evaluation, and the probes that score layers."""

from fedquilt.client.client import Client
from fedquilt.client.fit import Training
from fedquilt.client.workbench import Workbench

__all__ = ["Client", "Training", "Workbench"]
