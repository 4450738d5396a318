"""The budgets of a group's clients, and their fit with its model."""

from __future__ import annotations

from fedquilt.adapters.registry import KINDS
from fedquilt.allocate.budget import capability_groups, check_budgets, fractions, layers_of
from fedquilt.config.groups import Part
from fedquilt.core.types import Budget
from fedquilt.experiment.data_of_groups import naming_groups
from fedquilt.models.loaded import Loaded


def budgets_of(part: Part, num_layers: int) -> tuple[Budget, ...]:
    """The budgets of a group's clients, in their order; its model has ``num_layers`` blocks."""
    clients = part.config.clients
    layers = layers_of(clients.budgets, num_layers)
    ranks = clients.ranks if KINDS[part.config.adapter.kind].ranks == "own" else None
    return capability_groups(fractions(clients.shares), layers, part.config.partition.num_clients, ranks=ranks)


def check_part(part: Part, loaded: Loaded) -> None:
    """Raise ConfigError if the budgets of the group do not fit its model."""
    with naming_groups(part):
        depth = loaded.blocks.num_layers
        check_budgets(layers_of(part.config.clients.budgets, depth), depth)
