"""FFA-LoRA: A stays as it was drawn, and everybody trains B alone."""

from __future__ import annotations

from typing import Literal

from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.core.wrap import with_local
from fedquilt.methods.layered import Weighting, common_layers, factors_named, layered


def ffa_lora(
    federation: Federation,
    *,
    shape: Literal["triangle", "inverted-triangle", "bottleneck", "uniform"] = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """``B = sum_k p_k B_k`` over one A that all clients drew from the same seed; A is never trained and never sent.

    The mean of the products is then exactly the product of the mean: ``sum_k p_k B_k A = B A``. As many layers as the
    poorest client affords.

    Paper: ffa-lora, freeze-a
    """
    layers = common_layers(federation, shape)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    trunk = layered("ffa-lora", federation, allocate, weighting=weighting, factors=lambda round: ("lora_B",))
    # every client has the A that training starts from, so it need not travel; who evaluates or exports gets it along
    return with_local(trunk, factors_named(federation.layout, ("lora_A",)))._replace(view=trunk.view)
