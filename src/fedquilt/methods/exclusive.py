"""Exclusive: only clients that can afford to train all layers take part."""

from __future__ import annotations

from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.types import ClientId, ModelState, Turn
from fedquilt.methods.layered import Weighting, layered
from fedquilt.methods.traits import Traits

TRAITS = Traits(stateless=True)


def exclusive(federation: Federation, *, weighting: Weighting = "examples") -> Method:
    """Clients whose budget covers all layers train all layers; the others do not take part.

    A round without such a client changes nothing.

    Raises
    ------
    ConfigError
        if no client can afford all layers.
    """
    num_layers = federation.layout.num_layers
    if all(profile.budget.layers < num_layers for profile in federation.profiles):
        raise ConfigError(
            f"method.name = 'exclusive' needs a client that affords all {num_layers} layers; set an entry of "
            f"clients.budgets to {num_layers}"
        )

    def allocate(state: ModelState, turn: Turn) -> dict[ClientId, tuple[int, ...]]:
        return {p.id: tuple(range(num_layers)) for p in turn.cohort if p.budget.layers >= num_layers}

    return layered("exclusive", federation, allocate, weighting=weighting)
