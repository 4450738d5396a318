"""Straggler: everybody goes at the pace of the poorest client."""

from __future__ import annotations

from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, common_layers, layered


def straggler(federation: Federation, *, weighting: Weighting = "examples") -> Method:
    """Every client trains as many layers as the lowest budget in the federation, evenly spaced: ``floor(i L / k)``."""
    layers = common_layers(federation, "uniform")

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    return layered("straggler", federation, allocate, weighting=weighting)
