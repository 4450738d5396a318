"""LoRA-FAIR: the mean of factors, with B moved so that the product comes near to the mean of products."""

from __future__ import annotations

from typing import Literal

from fedquilt.aggregate.lowrank.rules import refined_rule
from fedquilt.config.value_types import Penalty
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, common_layers, layered


def lora_fair(
    federation: Federation,
    *,
    shape: Literal["triangle", "inverted-triangle", "bottleneck", "uniform"] = "inverted-triangle",
    strength: Penalty = 0.01,
    weighting: Weighting = "examples",
) -> Method:
    """``A = sum_k p_k A_k`` and ``B = sum_k p_k B_k + dB``, dB in closed form, held small by ``strength``.

    Clients go on from these factors. One rank for all, and as many layers as the poorest client affords.

    Raises
    ------
    ConfigError
        if ``strength`` is below 0.

    Paper: lora-fair, method
    """
    if strength < 0:
        raise ConfigError(f"method.strength = {strength}: must be at least 0")
    layers = common_layers(federation, shape)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    return layered("lora-fair", federation, allocate, weighting=weighting, rule=refined_rule(strength))
