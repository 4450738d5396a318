"""Local only: no federation; every client trains its own adapter and head."""

from __future__ import annotations

from fedquilt.allocate.layers import Shape, gd_set
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, ModelState, Turn
from fedquilt.core.wrap import with_local
from fedquilt.methods.layered import layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(sends="nothing")


def local_only(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
) -> Method:
    """Every client of the cohort continues to train its own tensors, on the layers of its budget; nothing travels."""
    layout = federation.layout

    def allocate(state: ModelState, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {p.id: gd_set(shape, layout.num_layers, p.budget.layers) for p in turn.cohort}

    return with_local(layered("local-only", federation, allocate), layout.depth)
