"""FedSA-LoRA: clients train both factors and share only A."""

from __future__ import annotations

from fedquilt.allocate.layers import Shape
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.wrap import with_local
from fedquilt.methods.layered import Weighting, common_layers, everyone, factors_named, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", sends="A")


def fedsa_lora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    local_head: bool = True,
    weighting: Weighting = "examples",
) -> Method:
    """``A = sum_k p_k A_k``; a client's B, and with ``local_head`` its head, are local.

    The result is a model for each client, A with its own B and head, and no global model. B is zero until a client has
    trained. Clients train as many layers as the lowest budget.

    Paper: fedsa-lora, share-a
    """
    layout = federation.layout

    trunk = layered("fedsa-lora", federation, everyone(common_layers(federation, shape)), weighting=weighting)
    return with_local(trunk, {*factors_named(layout, ("lora_B",)), *(layout.head if local_head else ())})
