"""FedIT: federated averaging of LoRA factors, everybody training the same layers."""

from __future__ import annotations

from fedquilt.allocate.layers import Shape
from fedquilt.core.method import Method
from fedquilt.core.types import Federation
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(stateless=True)


def fedit(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """FedAvg on the factors: ``A = sum_k p_k A_k``, ``B = sum_k p_k B_k``, of as many layers as the poorest client
    affords.

    FedIT knows one adapter for all, so the lowest budget sets its size; by default it is the deepest layers, which also
    cuts the backward pass short.

    Paper: fedit, factor-mean
    """

    return layered("fedit", federation, everyone(common_layers(federation, shape)), weighting=weighting)
