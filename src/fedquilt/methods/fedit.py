"""FedIT: federated averaging of LoRA factors, with the same layers at all clients."""

from __future__ import annotations

from fedquilt.allocate.layers import Shape
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(stateless=True)


def fedit(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """FedAvg on the factors: ``A = sum_k p_k A_k`` and ``B = sum_k p_k B_k``.

    In FedIT all clients have the same adapter, so that the lowest budget determines the number of its layers. By
    default these are the deepest layers, which also shortens the backward pass.

    Paper: fedit, factor-mean
    """
    return layered("fedit", federation, everyone(common_layers(federation, shape)), weighting=weighting)
