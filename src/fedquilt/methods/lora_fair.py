"""LoRA-FAIR: the mean of factors, with B corrected towards the mean of products."""

from __future__ import annotations

from fedquilt.aggregate.lowrank.rules import refined_rule
from fedquilt.aggregate.settings import RuleSettings
from fedquilt.allocate.layers import Shape
from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.settings import Penalty
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", rule=refined_rule())


def lora_fair(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    strength: Penalty = RuleSettings.strength,
    weighting: Weighting = "examples",
) -> Method:
    """``A = sum_k p_k A_k`` and ``B = sum_k p_k B_k + dB``, with dB in closed form and regularised by ``strength``.

    Clients continue from these factors. All clients have the same rank, and train as many layers as the lowest budget.

    Raises
    ------
    ConfigError
        if ``strength`` is below 0.

    Paper: lora-fair, method
    """
    if strength < 0:
        raise ConfigError(f"method.strength = {strength}: must be at least 0")

    return layered(
        "lora-fair",
        federation,
        everyone(common_layers(federation, shape)),
        weighting=weighting,
        rule=refined_rule(strength),
    )
