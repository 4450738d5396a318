"""Budgets from memory: the layers and ranks that each capability group can train in its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from fedquilt.adapters.registry import KINDS
from fedquilt.adapters.settings import at_most
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.experiment.build import shaped
from fedquilt.experiment.models import num_layers
from fedquilt.experiment.plan import client_plan, first_orders

_LIKE = 8
"""Number of equal clients in a trial round: different layers show that the method draws them at random."""


@dataclass(frozen=True)
class Afforded:
    """The layers and rank that fit into ``memory_bytes``, and the planned peak of a client with them.

    ``rank`` is None for kinds of adapters without ranks.
    """

    memory_bytes: int
    layers: int
    rank: int | None
    peak_bytes: int


def afforded(config: Config, gigabytes: Sequence[float]) -> tuple[Afforded, ...]:
    """For each group, lowest budget first, the most layers at ``adapter.rank`` whose planned peak fits.

    A gigabyte is 10^9 bytes. If not even one layer fits, the rank of one layer is halved until it fits, for kinds of
    adapters whose clients may have their own ranks. The peak is that of the method's first round
    (``ClientPlan.peak_bytes``). If the method draws layers at random, it is that of the lowest layers, which need the
    most memory.

    Raises
    ------
    ConfigError
        if there is not one number for each group, a number is not above 0 or is below the one before, nothing fits, the
        file has [[groups]], or the method cannot be planned.
    """
    if config.groups:
        raise ConfigError(
            "--memory: finds budgets for the capability groups of [clients], and this file has [[groups]]; see the "
            "memory that each of them needs with `fedquilt plan` and set groups[0].budget and so on accordingly"
        )
    groups = len(config.clients.shares.split("-"))
    given = ", ".join(f"{size:g}" for size in gigabytes)
    if len(gigabytes) != groups:
        raise ConfigError(
            f"--memory: {len(gigabytes)} numbers ({given}) for the {groups} groups of clients.shares = "
            f"'{config.clients.shares}'; give one for each group, lowest budget first"
        )
    if not all(0 < size < float("inf") for size in gigabytes) or list(gigabytes) != sorted(gigabytes):
        raise ConfigError(f"--memory: {given}; give gigabytes above 0, each at least as large as the one before")
    ranks = KINDS[config.adapter.kind].ranks
    depth, own = num_layers(config), None if ranks == "none" else config.adapter.largest_rank

    @cache
    def peak(layers: int, rank: int | None) -> int:
        return _peak(config, layers, rank, depth)

    def most(limit: int) -> Afforded:
        rank, layers = own, 1
        while peak(1, rank) > limit:
            if rank is None or rank == 1 or ranks == "one":
                one = "one layer" if rank is None else f"one layer at rank {rank}"
                raise ConfigError(
                    f"--memory {limit / 1e9:g}: {one} needs {_gigabytes(peak(1, rank))} GB; give the group as much, or "
                    f"lower training.batch_size = {config.training.batch_size}"
                )
            rank //= 2
        if rank == own:  # a binary search, as the peak grows with the number of layers
            over = depth + 1  # a number of layers that does not fit or does not exist
            while over - layers > 1:
                middle = (layers + over) // 2
                layers, over = (middle, over) if peak(middle, rank) <= limit else (layers, middle)
        return Afforded(limit, layers, rank, peak(layers, rank))

    return tuple(most(round(size * 1e9)) for size in gigabytes)


def budgeted(config: Config, groups: Sequence[Afforded]) -> Config:
    """The config with these layers and ranks of its groups."""
    change = {"budgets": tuple(one.layers for one in groups), "ranks": _ranks(groups)}
    return config.model_copy(update={"clients": config.clients.model_copy(update=change)})


def budget_lines(groups: Sequence[Afforded]) -> str:
    """The lines of a run file with these layers and ranks of the groups."""
    ranks = _ranks(groups)
    lines = ["[clients]", f"budgets = {[one.layers for one in groups]}", *([f"ranks = {[*ranks]}"] if ranks else [])]
    return "\n".join(lines)


def _ranks(groups: Sequence[Afforded]) -> tuple[int, ...] | None:
    return tuple(one.rank for one in groups if one.rank is not None) or None


def _peak(config: Config, layers: int, rank: int | None, depth: int) -> int:
    """The planned peak of a client with this budget; 0 if the method does not let it train."""
    # one client can train all layers: without one, a method may reject the federation
    experiment = shaped(_budgeted(config, f"{_LIKE}-1", (layers, depth), rank, _LIKE + 1))
    orders = [order for id, order in first_orders(experiment).items() if id < _LIKE]
    drawn = {tuple(order.settings.get("layers", ())) for order in orders}
    if len(drawn) > 1:
        worst = {**orders[0].settings, "layers": list(range(len(orders[0].settings["layers"])))}
        orders = [replace(orders[0], settings=worst)]
    return max((client_plan(experiment, 0, order, {}).peak_bytes for order in orders[:1]), default=0)


def _gigabytes(num_bytes: int) -> str:
    """Three decimals, rounded up, so that this much memory is enough."""
    return f"{-(-num_bytes // 10**6) / 1000:.3f}"


def _budgeted(config: Config, shares: str, budgets: tuple[int, ...], rank: int | None, num_clients: int) -> Config:
    change = {"shares": shares, "budgets": budgets, "ranks": None, "cohort": None}
    return config.model_copy(
        update={
            "clients": config.clients.model_copy(update=change),
            "adapter": config.adapter if rank is None else at_most(config.adapter, rank),
            "partition": config.partition.model_copy(update={"num_clients": num_clients}),
        }
    )
