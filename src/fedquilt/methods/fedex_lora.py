"""FedEx-LoRA: the mean of factors, and what it loses against the mean of products goes into the base."""

from __future__ import annotations

from typing import Literal

from fedquilt.aggregate.lowrank.rules import residual_rule
from fedquilt.config.value_types import RankOrZero
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, Federation, Tree, Turn
from fedquilt.methods.layered import Weighting, common_layers, layered


def fedex_lora(
    federation: Federation,
    *,
    shape: Literal["triangle", "inverted-triangle", "bottleneck", "uniform"] = "inverted-triangle",
    residual_rank: RankOrZero | None = None,
    weighting: Weighting = "examples",
) -> Method:
    """``A`` and ``B`` as in FedIT, and ``W <- W + sum_k p_k s_k B_k A_k - s B A``, so that the model is the exact mean.

    With a ``residual_rank`` only the best part of that rank is sent in each round, and the rest is carried over to the
    next; 0 sends and carries nothing, which is FedIT. The server notes which version of the base each client has and
    sends it the changes that it lacks. One rank for all, and as many layers as the poorest client affords.

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
    layers = common_layers(federation, shape)

    def allocate(state: Tree, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {profile.id: layers for profile in turn.cohort}

    return layered("fedex-lora", federation, allocate, weighting=weighting, rule=residual_rule(residual_rank))
