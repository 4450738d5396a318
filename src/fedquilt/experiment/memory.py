"""From gigabytes to layers and ranks: what each capability group can train in the memory that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from fedquilt.adapters.registry import KINDS
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.experiment.build import shaped
from fedquilt.experiment.models import num_layers
from fedquilt.experiment.plan import client_plan, first_orders

_LIKE = 8
"""Clients of the same budget that are asked, to see whether the method draws layers; all alike by chance is rare."""


@dataclass(frozen=True)
class Afforded:
    """What a group with ``memory_bytes`` can train; ``peak_bytes`` is the most that a client of it then needs.

    ``rank`` is None where the weights are trained, which have none.
    """

    memory_bytes: int
    layers: int
    rank: int | None
    peak_bytes: int


def afforded(config: Config, gigabytes: Sequence[float]) -> tuple[Afforded, ...]:
    """For each group, weakest first, the most layers at ``adapter.rank`` whose planned peak fits; 10^9 bytes each.

    Where not even one layer fits, one layer at half that rank, at a quarter, and so on down to 1; but not of mixtures,
    whose branches have one rank, nor where the weights are trained. The peak is that of the method's own first round
    (``ClientPlan.peak_bytes``); where the method draws layers, that of the draw that reaches furthest down, which needs
    the most.

    Raises
    ------
    ConfigError
        if there is not one number for each group, one is not above 0 or below the one before, one layer at rank 1
        does not fit, or the file has [[groups]]; or if the method cannot be planned.
    """
    if config.groups:
        raise ConfigError(
            "--memory: finds budgets for the capability groups of [clients], and this file has [[groups]]; see what "
            "each of them needs with `fedquilt plan` alone and set groups[0].budget and so on by that"
        )
    groups = len(config.clients.shares.split("-"))
    given = ", ".join(f"{size:g}" for size in gigabytes)
    if len(gigabytes) != groups:
        raise ConfigError(
            f"--memory: {len(gigabytes)} numbers ({given}) for the {groups} groups of clients.shares = "
            f"'{config.clients.shares}'; give one for each group, weakest first"
        )
    if not all(0 < size < float("inf") for size in gigabytes) or list(gigabytes) != sorted(gigabytes):
        raise ConfigError(f"--memory: {given}; give gigabytes above 0 that do not fall from one group to the next")
    ranks = KINDS[config.adapter.kind].ranks
    depth, own = num_layers(config), None if ranks == "none" else config.adapter.rank

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
        if rank == own:  # more layers, if they fit; peaks rise with their number
            over = depth + 1  # where it is known not to fit, or there are no more
            while over - layers > 1:
                middle = (layers + over) // 2
                layers, over = (middle, over) if peak(middle, rank) <= limit else (layers, middle)
        return Afforded(limit, layers, rank, peak(layers, rank))

    return tuple(most(round(size * 1e9)) for size in gigabytes)


def budgeted(config: Config, groups: Sequence[Afforded]) -> Config:
    """The config with these layers and ranks for its groups."""
    change = {"budgets": tuple(one.layers for one in groups), "ranks": _ranks(groups)}
    return config.model_copy(update={"clients": config.clients.model_copy(update=change)})


def budget_lines(groups: Sequence[Afforded]) -> str:
    """The lines of a run file that give the groups these layers and ranks."""
    ranks = _ranks(groups)
    lines = ["[clients]", f"budgets = {[one.layers for one in groups]}", *([f"ranks = {[*ranks]}"] if ranks else [])]
    return "\n".join(lines)


def _ranks(groups: Sequence[Afforded]) -> tuple[int, ...] | None:
    return tuple(one.rank for one in groups if one.rank is not None) or None


def _peak(config: Config, layers: int, rank: int | None, depth: int) -> int:
    """The most that a client of this budget needs; 0 if the method lets it sit out."""
    # one client that affords all stands beside them: without one, a method may refuse the federation
    experiment = shaped(_budgeted(config, f"{_LIKE}-1", (layers, depth), rank, _LIKE + 1))
    orders = [order for id, order in first_orders(experiment).items() if id < _LIKE]
    drawn = {tuple(order.settings.get("layers", ())) for order in orders}
    if len(drawn) > 1:
        worst = {**orders[0].settings, "layers": list(range(len(orders[0].settings["layers"])))}
        orders = [replace(orders[0], settings=worst)]
    return max((client_plan(experiment, 0, order, {}).peak_bytes for order in orders[:1]), default=0)


def _gigabytes(num_bytes: int) -> str:
    """Three decimals, rounded up: whoever gives that much gives enough."""
    return f"{-(-num_bytes // 10**6) / 1000:.3f}"


def _budgeted(config: Config, shares: str, budgets: tuple[int, ...], rank: int | None, num_clients: int) -> Config:
    change = {"shares": shares, "budgets": budgets, "ranks": None, "cohort": None}
    return config.model_copy(
        update={
            "clients": config.clients.model_copy(update=change),
            "adapter": config.adapter.model_copy(update={} if rank is None else {"rank": rank}),
            "partition": config.partition.model_copy(update={"num_clients": num_clients}),
        }
    )
