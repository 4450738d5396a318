"""FlexLoRA: the mean of the clients' products, truncated to each client's rank by an SVD."""

from __future__ import annotations

from fedquilt.aggregate.lowrank.rules import svd_rule
from fedquilt.aggregate.settings import RuleSettings, Split
from fedquilt.allocate.layers import Shape
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", rule=svd_rule())


def flexlora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    split: Split = RuleSettings.split,
    weighting: Weighting = "examples",
) -> Method:
    """``D = sum_k p_k s_k B_k A_k``; a client of rank r continues from the best approximation of D with rank r.

    Clients may differ in rank. The server's factors have ``adapter.rank``, and a client's factors are their first
    columns and rows. ``split`` says which factor takes the singular values: B (``left``), or both (``even``). Clients
    train as many layers as the lowest budget.

    Paper: flexlora, method
    """
    return layered(
        "flexlora", federation, everyone(common_layers(federation, shape)), weighting=weighting, rule=svd_rule(split)
    )
