"""FLoRA: the clients' stacked adapters are merged into the base, and every round starts with fresh adapters."""

from __future__ import annotations

from fedquilt.aggregate.lowrank.rules import stack_rule
from fedquilt.allocate.layers import Shape
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
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

    Each client starts every round with a newly drawn A of its own and B at zero; clients may differ in rank. The server
    records the version of the base at each client and sends the missing changes. Clients train as many layers as the
    lowest budget.

    Paper: flora, fresh
    """
    return layered(
        "flora", federation, everyone(common_layers(federation, shape)), weighting=weighting, rule=stack_rule()
    )
