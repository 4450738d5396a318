"""FlexLoRA: the mean of the clients' products, cut to each client's rank by singular values."""

from __future__ import annotations

from typing import Literal

from fedquilt.aggregate.lowrank.rules import svd_rule
from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, common_layers, layered


def flexlora(
    federation: Federation,
    *,
    shape: Literal["triangle", "inverted-triangle", "bottleneck", "uniform"] = "inverted-triangle",
    split: Literal["left", "even"] = "left",
    weighting: Weighting = "examples",
) -> Method:
    """``D = sum_k p_k s_k B_k A_k``; a client of rank r goes on from the best approximation of D of that rank.

    Clients may differ in rank; what the server keeps has ``adapter.rank``, and a client's factors are the first columns
    and rows of it. ``split`` is where the singular values go: all into B, or evenly into B and A. As many layers as the
    poorest client affords.

    Paper: flexlora, method
    """
    layers = common_layers(federation, shape)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    return layered("flexlora", federation, allocate, weighting=weighting, rule=svd_rule(split))
