"""The budgets of a group's clients, and their fit with its model."""

from __future__ import annotations

from fedquilt.adapters.registry import KINDS
from fedquilt.allocate.budget import capability_groups, check_budgets, fractions
from fedquilt.config.groups import Part
from fedquilt.core.types import Budget
from fedquilt.experiment.data_of_groups import naming_groups
from fedquilt.models.loaded import Loaded


def budgets_of(part: Part) -> tuple[Budget, ...]:
    """The budgets of a group's clients, in their order."""
    clients = part.config.clients
    ranks = clients.ranks if KINDS[part.config.adapter.kind].ranks == "own" else None
    return capability_groups(fractions(clients.shares), clients.budgets, part.config.partition.num_clients, ranks=ranks)


def check_part(part: Part, loaded: Loaded) -> None:
    """Raise ConfigError if the budgets of the group do not fit its model."""
    with naming_groups(part):
        check_budgets(part.config.clients.budgets, loaded.blocks.num_layers)
