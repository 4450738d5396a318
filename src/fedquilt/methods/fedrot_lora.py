"""FedRot-LoRA: the mean of factors, with each client's pair first rotated to the server's."""

from __future__ import annotations

from fedquilt.aggregate.lowrank.rules import rotated_rule
from fedquilt.allocate.layers import Shape
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", rule=rotated_rule())


def fedrot_lora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """``B = sum_k p_k B_k R_k`` and ``A = sum_k p_k R_k^T A_k`` with R_k orthogonal, so that no product changes.

    R_k rotates the client's factors as near as possible to those that the server sent (orthogonal Procrustes). All
    clients have the same rank, and train as many layers as the lowest budget.

    Sourced, from the paper's abstract and summaries of it: the rotations before the mean, and Procrustes. Inferred: the
    factors of the round before as the target, for A and B together.

    Paper: fedrot-lora, method
    """
    return layered(
        "fedrot-lora",
        federation,
        everyone(common_layers(federation, shape)),
        weighting=weighting,
        rule=rotated_rule(),
    )
