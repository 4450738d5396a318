"""FedRPCA: the mean of factors, with the sparse, client-specific part of the updates scaled up."""

from __future__ import annotations

from fedquilt.aggregate.lowrank.rules import robust_pca_rule
from fedquilt.aggregate.settings import RuleSettings
from fedquilt.allocate.layers import Shape
from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.settings import Penalty
from fedquilt.methods.layered import Weighting, common_layers, everyone, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(needs="factors", rule=robust_pca_rule())


def fedrpca(
    federation: Federation,
    *,
    shape: Shape = "inverted-triangle",
    sparse_scale: Penalty = RuleSettings.sparse_scale,
    weighting: Weighting = "examples",
) -> Method:
    """``A <- A + sum_k p_k (L_k + beta S_k)``, and B likewise; ``L_k + S_k`` is the client's update of the factor.

    Robust PCA of all clients' updates gives the common L of low rank and the sparse S, and beta is ``sparse_scale``.
    All clients have the same rank, and train as many layers as the lowest budget.

    Raises
    ------
    ConfigError
        if ``sparse_scale`` is below 0.

    Paper: fedrpca, method
    """
    if sparse_scale < 0:
        raise ConfigError(f"method.sparse_scale = {sparse_scale}: must be at least 0")

    return layered(
        "fedrpca",
        federation,
        everyone(common_layers(federation, shape)),
        weighting=weighting,
        rule=robust_pca_rule(sparse_scale),
    )
