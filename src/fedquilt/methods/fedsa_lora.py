"""FedSA-LoRA: everybody trains both factors and shares A alone."""

from __future__ import annotations

from typing import Literal

from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.core.wrap import with_local
from fedquilt.methods.layered import Weighting, common_layers, factors_named, layered


def fedsa_lora(
    federation: Federation,
    *,
    shape: Literal["triangle", "inverted-triangle", "bottleneck", "uniform"] = "inverted-triangle",
    local_head: bool = True,
    weighting: Weighting = "examples",
) -> Method:
    """``A = sum_k p_k A_k``; a client's B, and with ``local_head`` its head, stay with it.

    What results is a model for each client, A with its own B and head; there is no model for all. A client that has not
    trained yet has B at zero. As many layers as the poorest client affords.

    Paper: fedsa-lora, share-a
    """
    layout = federation.layout
    layers = common_layers(federation, shape)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    trunk = layered("fedsa-lora", federation, allocate, weighting=weighting)
    return with_local(trunk, {*factors_named(layout, ("lora_B",)), *(layout.head if local_head else ())})
