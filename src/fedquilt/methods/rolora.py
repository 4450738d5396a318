"""RoLoRA: everybody trains B in one round and A in the next."""

from __future__ import annotations

from typing import Literal

from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, common_layers, layered


def rolora(
    federation: Federation,
    *,
    shape: Literal["triangle", "inverted-triangle", "bottleneck", "uniform"] = "inverted-triangle",
    weighting: Weighting = "examples",
) -> Method:
    """Rounds 0, 2, ... train and average B with A common to all, rounds 1, 3, ... A with B common.

    In every round one factor is the same at all clients, so the mean is exact. B comes first: it starts at zero, and
    where B is zero A has no gradient. Half of the factors go up; both come down, as a client may have missed any round.
    As many layers as the poorest client affords.

    Paper: rolora, alternate
    """
    layers = common_layers(federation, shape)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    def factors(round: int) -> tuple[str, ...]:
        return ("lora_A",) if round % 2 else ("lora_B",)

    return layered("rolora", federation, allocate, weighting=weighting, factors=factors)
