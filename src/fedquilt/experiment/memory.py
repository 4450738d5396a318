"""Budgets from memory: the layers and ranks that each group of clients can train in its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from fedquilt.adapters.registry import KINDS
from fedquilt.adapters.settings import at_most
from fedquilt.config.groups import parts
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.experiment.build import shaped
from fedquilt.experiment.first_round import first_orders
from fedquilt.experiment.fitting import fitting
from fedquilt.experiment.models import num_layers
from fedquilt.experiment.plan import client_plan

_LIKE = 8
"""Number of equal clients in a trial round: different layers show that the method draws them at random."""


@dataclass(frozen=True)
class Afforded:
    """The layers and rank that fit into ``memory_bytes``, and the planned peak of a client with them.

    ``rank`` is None for kinds of adapters without ranks, ``group`` the label of an entry of [[groups]] or empty.
    """

    memory_bytes: int
    layers: int
    rank: int | None
    peak_bytes: int
    group: str = ""


def afforded(config: Config, gigabytes: Sequence[float]) -> tuple[Afforded, ...]:
    """For each group, the most layers at its rank whose planned peak fits.

    The groups are the capability groups, lowest budget first, or the entries of [[groups]] in their order. A gigabyte
    is 10^9 bytes. If not even one layer fits, the rank of one layer is halved until it fits, for kinds of adapters
    whose clients may have their own ranks. The peak is that of the method's first round (``ClientPlan.peak_bytes``). If
    the method draws layers at random, it is that of the lowest layers, which need the most memory.

    Raises
    ------
    ConfigError
        if there is not one number for each group, a number is not above 0, one of a capability group is below the one
        before, nothing fits, or the method cannot be planned.
    """
    if config.parties:
        raise ConfigError("--memory: parties of a vertical federation train whole encoders, so no layers are chosen")
    groups = len(config.groups or config.clients.shares.split("-"))
    given = ", ".join(f"{size:g}" for size in gigabytes)
    if len(gigabytes) != groups:
        which = "[[groups]]" if config.groups else f"groups of clients.shares = '{config.clients.shares}'"
        order = "in their order" if config.groups else "lowest budget first"
        raise ConfigError(
            f"--memory: {len(gigabytes)} number{'s' * (len(gigabytes) != 1)} ({given}) for the {groups} {which}; give "
            f"one for each group, {order}"
        )
    ordered = bool(config.groups) or list(gigabytes) == sorted(gigabytes)
    if not all(0 < size < float("inf") for size in gigabytes) or not ordered:
        rising = "" if config.groups else ", each at least as large as the one before"
        raise ConfigError(f"--memory: {given}; give gigabytes above 0{rising}")
    limits = [round(size * 1e9) for size in gigabytes]
    if config.groups:
        return tuple(_search(config, place)(limit) for place, limit in enumerate(limits))
    return tuple(map(_search(config, 0), limits))


def budgeted(config: Config, groups: Sequence[Afforded]) -> Config:
    """The config with these layers and ranks of its groups."""
    if config.groups:
        both = zip(config.groups, groups, strict=True)
        fitted = tuple(own.model_copy(update={"budget": one.layers, "rank": one.rank}) for own, one in both)
        return config.model_copy(update={"groups": fitted})
    change = {"budgets": tuple(one.layers for one in groups), "ranks": _ranks(groups)}
    return config.model_copy(update={"clients": config.clients.model_copy(update=change)})


def budget_lines(groups: Sequence[Afforded]) -> str:
    """The lines of a run file with these layers and ranks of the groups."""
    if groups[0].group:
        return "\n\n".join(
            "\n".join(
                ["[[groups]]", f'label = "{one.group}"', f"budget = {one.layers}"]
                + ([] if one.rank is None else [f"rank = {one.rank}"])
            )
            for one in groups
        )
    ranks = _ranks(groups)
    lines = ["[clients]", f"budgets = {[one.layers for one in groups]}", *([f"ranks = {[*ranks]}"] if ranks else [])]
    return "\n".join(lines)


def _ranks(groups: Sequence[Afforded]) -> tuple[int, ...] | None:
    return tuple(one.rank for one in groups if one.rank is not None) or None


def _search(config: Config, place: int) -> Callable[[int], Afforded]:
    """``most(limit)``: what a group can train in so many bytes; ``place`` is its number in [[groups]], if there are."""
    part = parts(config)[place]
    ranks, depth = KINDS[part.config.adapter.kind].ranks, num_layers(part.config)
    given = (
        part.config.clients.ranks[0]
        if config.groups and part.config.clients.ranks
        else part.config.adapter.largest_rank
    )
    own = None if ranks == "none" else given

    @cache
    def peak(layers: int, rank: int | None) -> int:
        return _peak(config, place, layers, rank, depth)

    def most(limit: int) -> Afforded:
        rank, layers = own, 1
        if peak(depth, own) <= limit:
            return Afforded(limit, depth, own, peak(depth, own), part.label)
        while peak(1, rank) > limit:
            if rank is None or rank == 1 or ranks == "one":
                raise ConfigError(_nothing_fits(config, place, depth, limit, rank, peak(1, rank)))
            rank //= 2
        if rank == own:  # a binary search, as the peak grows with the number of layers
            over = depth  # a number of layers that does not fit
            while over - layers > 1:
                middle = (layers + over) // 2
                layers, over = (middle, over) if peak(middle, rank) <= limit else (layers, middle)
        return Afforded(limit, layers, rank, peak(layers, rank), part.label)

    return most


def _nothing_fits(config: Config, place: int, depth: int, limit: int, rank: int | None, needed: int) -> str:
    """Why a group can train nothing in so many bytes, and what would let it."""
    one = "one layer" if rank is None else f"one layer at rank {rank}"
    label = parts(config)[place].label
    advice = fitting(config, place, lambda other: _peak(other, place, 1, rank, depth) <= limit)
    return (
        f"--memory {limit / 1e9:g}: {one}{f' of group {label!r}' if label else ''} needs {_gigabytes(needed)} GB; give "
        f"the group as much, or {advice}"
    )


def _peak(config: Config, place: int, layers: int, rank: int | None, depth: int) -> int:
    """The planned peak of a client with this budget; 0 if the method does not let it train."""
    trial = (
        _trial_of_group(config, place, layers, rank, depth) if config.groups else _trial(config, layers, rank, depth)
    )
    experiment = shaped(trial)
    first = first_orders(experiment.method, experiment.federation.profiles, experiment.rng)
    orders = [order for id, order in first.items() if id < _LIKE]
    drawn = {tuple(order.settings.get("layers", ())) for order in orders}
    if len(drawn) > 1:
        worst = {**orders[0].settings, "layers": list(range(len(orders[0].settings["layers"])))}
        orders = [replace(orders[0], settings=worst)]
    return max((client_plan(experiment, 0, order, {}).peak_bytes for order in orders[:1]), default=0)


def _trial(config: Config, layers: int, rank: int | None, depth: int) -> Config:
    """A federation of equal clients of this budget, and one that can train all layers.

    Without the latter a method may reject the federation.
    """
    change = {"shares": f"{_LIKE}-1", "budgets": (layers, depth), "ranks": None, "cohort": None}
    return config.model_copy(
        update={
            "clients": config.clients.model_copy(update=change),
            "adapter": config.adapter if rank is None else at_most(config.adapter, rank),
            "partition": config.partition.model_copy(update={"num_clients": _LIKE + 1}),
        }
    )


def _trial_of_group(config: Config, place: int, layers: int, rank: int | None, depth: int) -> Config:
    """As ``_trial``, of clients of one of the [[groups]], which comes first; of the others there is one client each."""
    own = config.groups[place]
    of_budget = own.model_copy(update={"budget": layers, "rank": rank, "share": _LIKE})
    whole = own.model_copy(update={"budget": depth, "label": f"{own.label} (all layers)", "share": 1})
    others = [one.model_copy(update={"share": 1}) for one in config.groups if one is not own]
    size = config.partition.model_copy(update={"num_clients": _LIKE + 1 + len(others)})
    clients = config.clients.model_copy(update={"cohort": None})
    return config.model_copy(update={"groups": (of_budget, whole, *others), "partition": size, "clients": clients})


def _gigabytes(num_bytes: int) -> str:
    """Three decimals, rounded up, so that this much memory is enough."""
    return f"{-(-num_bytes // 10**6) / 1000:.3f}"
