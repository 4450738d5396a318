"""Full: everybody trains every layer, whatever its budget; an upper bound that these clients cannot run."""

from __future__ import annotations

from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, layered


def full(federation: Federation, *, weighting: Weighting = "examples") -> Method:
    """Every client of the cohort trains all L layers."""
    layers = tuple(range(federation.layout.num_layers))

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    return layered("full", federation, allocate, weighting=weighting)
