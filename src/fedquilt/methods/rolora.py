"""RoLoRA: everybody trains B in one round and A in the next."""

from __future__ import annotations

from fedquilt.allocate.layers import Shape
from fedquilt.core.method import Method
from fedquilt.core.types import Federation
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", sends="alternating", stateless=True)


def rolora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """Rounds 0, 2, ... train and average B with A common to all, rounds 1, 3, ... A with B common.

    In every round one factor is the same at all clients, so the mean is exact. B comes first: it starts at zero, and
    where B is zero A has no gradient. Half of the factors go up; both come down, as a client may have missed any round.
    As many layers as the poorest client affords.

    Paper: rolora, alternate
    """

    def factors(round: int) -> tuple[str, ...]:
        return ("lora_A",) if round % 2 else ("lora_B",)

    return layered(
        "rolora", federation, everyone(common_layers(federation, shape)), weighting=weighting, factors=factors
    )
