"""FedIT: federated averaging of LoRA factors, everybody training the same layers."""

from __future__ import annotations

from typing import Literal

from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, common_layers, layered


def fedit(
    federation: Federation,
    *,
    shape: Literal["triangle", "inverted-triangle", "bottleneck", "uniform"] = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """FedAvg on the factors: ``A = sum_k p_k A_k``, ``B = sum_k p_k B_k``, of as many layers as the poorest client
    affords.

    FedIT knows one adapter for all, so the lowest budget sets its size; by default it is the deepest layers, which also
    cuts the backward pass short.

    Paper: fedit, factor-mean
    """
    layers = common_layers(federation, shape)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    return layered("fedit", federation, allocate, weighting=weighting)
