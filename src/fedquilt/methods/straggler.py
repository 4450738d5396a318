"""Straggler: all clients train as many layers as the lowest budget allows."""

from __future__ import annotations

from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(stateless=True)


def straggler(federation: Federation, *, weighting: Weighting = "examples") -> Method:
    """Every client trains as many layers as the lowest budget in the federation, evenly spaced: ``floor(i L / k)``."""
    return layered("straggler", federation, everyone(common_layers(federation, "uniform")), weighting=weighting)
