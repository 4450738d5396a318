"""FLoRA: the clients' adapters stacked and merged into the base, and a fresh adapter every round."""

from __future__ import annotations

from typing import Literal

from fedquilt.aggregate.lowrank.rules import stack_rule
from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, common_layers, layered


def flora(
    federation: Federation,
    *,
    shape: Literal["triangle", "inverted-triangle", "bottleneck", "uniform"] = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """``W <- W + sum_k p_k s_k B_k A_k``, exactly, as one product of stacked factors that every client merges.

    Each client begins every round with an A of its own, drawn afresh, and B at zero; clients may differ in rank. The
    server notes which version of the base each client has and sends it the changes that it lacks. As many layers as the
    poorest client affords.

    Paper: flora, fresh
    """
    layers = common_layers(federation, shape)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    return layered("flora", federation, allocate, weighting=weighting, rule=stack_rule())
