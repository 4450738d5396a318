"""FlexLoRA: the mean of the clients' products, cut to each client's rank by singular values."""

from __future__ import annotations

from typing import Literal

from fedquilt.aggregate.lowrank.rules import svd_rule
from fedquilt.allocate.layers import Shape
from fedquilt.core.method import Method
from fedquilt.core.types import Federation
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", rule=svd_rule())


def flexlora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    split: Literal["left", "even"] = "left",
    weighting: Weighting = "examples",
) -> Method:
    """``D = sum_k p_k s_k B_k A_k``; a client of rank r goes on from the best approximation of D of that rank.

    Clients may differ in rank; what the server keeps has ``adapter.rank``, and a client's factors are the first columns
    and rows of it. ``split`` is where the singular values go: all into B, or evenly into B and A. As many layers as the
    poorest client affords.

    Paper: flexlora, method
    """

    return layered(
        "flexlora", federation, everyone(common_layers(federation, shape)), weighting=weighting, rule=svd_rule(split)
    )
