"""Full: all clients train all layers whatever their budgets, as an upper bound that they could not run."""

from __future__ import annotations

from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.methods.layered import Weighting, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(stateless=True)


def full(federation: Federation, *, weighting: Weighting = "examples") -> Method:
    """Every client of the cohort trains all L layers."""
    layers = tuple(range(federation.layout.num_layers))
    return layered("full", federation, everyone(layers), weighting=weighting)
