"""FLoRA: the clients' adapters stacked and merged into the base, and a fresh adapter every round."""

from __future__ import annotations

from fedquilt.aggregate.lowrank.rules import stack_rule
from fedquilt.allocate.layers import Shape
from fedquilt.core.method import Method
from fedquilt.core.types import Federation
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", rule=stack_rule())


def flora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """``W <- W + sum_k p_k s_k B_k A_k``, exactly, as one product of stacked factors that every client merges.

    Each client begins every round with an A of its own, drawn afresh, and B at zero; clients may differ in rank. The
    server notes which version of the base each client has and sends it the changes that it lacks. As many layers as the
    poorest client affords.

    Paper: flora, fresh
    """

    return layered(
        "flora", federation, everyone(common_layers(federation, shape)), weighting=weighting, rule=stack_rule()
    )
