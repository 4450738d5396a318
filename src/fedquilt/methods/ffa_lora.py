"""FFA-LoRA: A stays as it was drawn, and everybody trains B alone."""

from __future__ import annotations

from fedquilt.allocate.layers import Shape
from fedquilt.core.method import Method
from fedquilt.core.types import Federation
from fedquilt.core.wrap import with_local
from fedquilt.methods.layered import Weighting, common_layers, everyone, factors_named, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", sends="B", stateless=True)


def ffa_lora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """``B = sum_k p_k B_k`` over one A that all clients drew from the same seed; A is never trained and never sent.

    The mean of the products is then exactly the product of the mean: ``sum_k p_k B_k A = B A``. As many layers as the
    poorest client affords.

    Paper: ffa-lora, freeze-a
    """

    trunk = layered(
        "ffa-lora",
        federation,
        everyone(common_layers(federation, shape)),
        weighting=weighting,
        factors=lambda round: ("lora_B",),
    )
    # every client has the A that training starts from, so it need not travel; who evaluates or exports gets it along
    return with_local(trunk, factors_named(federation.layout, ("lora_A",)))._replace(view=trunk.view)
