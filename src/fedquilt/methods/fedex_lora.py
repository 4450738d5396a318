"""FedEx-LoRA: the mean of factors, with its residual to the mean of products merged into the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedquilt.aggregate.lowrank.rules import residual_rule
from fedquilt.aggregate.settings import RuleSettings
from fedquilt.allocate.layers import Shape
from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.settings import RankOrZero
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits


def fedex_lora(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    residual_rank: RankOrZero | None = RuleSettings.residual_rank,
    weighting: Weighting = "examples",
) -> Method:
    """``A`` and ``B`` as in FedIT, and ``W <- W + sum_k p_k s_k B_k A_k - s B A``, so that the model is the exact mean.

    With a ``residual_rank`` only the best approximation of that rank is sent in each round, and the rest is carried
    over to the next; 0 sends and carries nothing, which is FedIT. The server records the version of the base at each
    client and sends the missing changes. All clients have the same rank, and train as many layers as the lowest budget.

    Raises
    ------
    ConfigError
        if ``residual_rank`` is below 0.

    Paper: fedex-lora, method
    """
    if residual_rank is not None and residual_rank < 0:
        raise ConfigError(
            f"method.residual_rank = {residual_rank}: must be at least 0, or left out for the whole residual"
        )

    return layered(
        "fedex-lora",
        federation,
        everyone(common_layers(federation, shape)),
        weighting=weighting,
        rule=residual_rule(residual_rank),
    )


def traits(settings: Mapping[str, Any]) -> Traits:
    """LoRA factors, combined by a rule that changes the base unless ``residual_rank`` is 0."""
    return Traits(needs="factors", rule=residual_rule(settings["residual_rank"]))
