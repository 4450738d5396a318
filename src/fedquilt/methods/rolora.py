"""RoLoRA: clients train B in one round and A in the next."""

from __future__ import annotations

from fedquilt.allocate.layers import Shape
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", sends="alternating", stateless=True)


def rolora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """Rounds 0, 2, ... train and average B with a common A, rounds 1, 3, ... A with a common B.

    In every round one factor is the same at all clients, so that the mean is exact. B is trained first: it starts at
    zero, and A has no gradient while B is zero. Clients send one factor and receive both, as they may have missed
    rounds. They train as many layers as the lowest budget.

    Paper: rolora, alternate
    """

    def factors(round: int) -> tuple[str, ...]:
        return ("lora_A",) if round % 2 else ("lora_B",)

    return layered(
        "rolora", federation, everyone(common_layers(federation, shape)), weighting=weighting, factors=factors
    )
