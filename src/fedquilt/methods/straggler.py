"""Straggler: everybody goes at the pace of the poorest client."""

from __future__ import annotations

from fedquilt.allocate.layers import gd_set
from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, layered


def straggler(federation: Federation, *, weighting: Weighting = "examples") -> Method:
    """Every client trains as many layers as the lowest budget in the federation, evenly spaced: ``floor(i L / k)``."""
    lowest = min(profile.budget.layers for profile in federation.profiles)
    layers = gd_set("uniform", federation.layout.num_layers, lowest)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    return layered("straggler", federation, allocate, weighting=weighting)
