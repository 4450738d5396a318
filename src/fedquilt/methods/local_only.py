"""Local only: no federation; every client trains its own adapter and head."""

from __future__ import annotations

from dataclasses import replace

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
    """Every client of the cohort continues to train its own tensors, on the layers of its budget; nothing travels.

    Clients may differ in rank.
    """
    layout = federation.layout
    # nothing is combined, so no rank is too low: the rank of a client's tensors is that of its own initial ones
    alone = tuple(replace(p, budget=replace(p.budget, rank=None)) for p in federation.profiles)

    def allocate(state: ModelState, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {p.id: gd_set(shape, layout.num_layers, p.budget.layers) for p in turn.cohort}

    return with_local(layered("local-only", replace(federation, profiles=alone), allocate), layout.depth)
