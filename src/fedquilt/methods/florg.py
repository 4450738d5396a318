"""FLoRG: both factors as one low-rank matrix, averaged by its Gram matrix, factored and rotated to the last round's."""

from __future__ import annotations

from fedquilt.aggregate.lowrank.rules import gram_rule
from fedquilt.allocate.layers import Shape
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", rule=gram_rule())


def florg(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """``Z^T Z`` nearest to ``sum_k p_k Z_k^T Z_k``, with ``Z_k = [s_k B_k^T, A_k]`` and Z rotated to the last round's.

    The mean Gram matrix holds the exact mean of the products. All clients have the same rank, and train as many layers
    as the lowest budget.

    Sourced, from the paper's abstract: a single low-rank matrix whose Gram matrix is averaged, a decomposition of the
    mean, and Procrustes alignment to the round before. Inferred: how a weight of any shape comes from a single matrix.
    Here it is LoRA's pair side by side, whose Gram matrix has ``B A`` as a block. The paper's clients send less than
    both factors; these send both.

    Paper: florg, method
    """
    return layered(
        "florg", federation, everyone(common_layers(federation, shape)), weighting=weighting, rule=gram_rule()
    )
