"""FFA-LoRA: A is frozen at its random initialisation, and clients train only B."""

from __future__ import annotations

from fedquilt.allocate.layers import Shape
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
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
    """``B = sum_k p_k B_k`` with one A that all clients draw from the same seed; A is neither trained nor sent.

    The mean of the products is then exactly the product of the means: ``sum_k p_k B_k A = B A``. Clients train as many
    layers as the lowest budget.

    Paper: ffa-lora, freeze-a
    """
    trunk = layered(
        "ffa-lora",
        federation,
        everyone(common_layers(federation, shape)),
        weighting=weighting,
        factors=lambda round: ("lora_B",),
    )
    # every client has the initial A, so that it need not travel; orders for evaluation and export do hold it
    return with_local(trunk, factors_named(federation.layout, ("lora_A",)))._replace(view=trunk.view)
