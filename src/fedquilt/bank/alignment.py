"""Alignment (CMGA) of what architectures want of the bank, of which each holds other entries.

What a group of clients wants of an entry is its pull: its own numerator of ``bank.merged_bank``. Pulls are aligned part
by part, and a part is what the same groups hold of one slot of one site, so that nobody is judged by entries it does
not have. They are what clients would have, weighed by examples and coverage, and not divided by local steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fedquilt.aggregate.alignment.gradients import Aligned, AlignSettings, combined, cosines, num_conflicts
from fedquilt.aggregate.alignment.wrapper import draws_of, first_record, next_record, reported
from fedquilt.bank.merge import BankUpdate, RunningBank, merged_bank
from fedquilt.core.method import reports_nothing
from fedquilt.core.rng import Rng
from fedquilt.core.types import Params, Tree


def aligned_bank(
    bank: Mapping[str, Tensor],
    updates: Iterable[tuple[str, BankUpdate]],
    settings: AlignSettings,
    rng: Rng,
    *,
    step: float = 1.0,
    damping: float = 0.0,
) -> tuple[Params, Aligned]:
    """The bank after a round, moved by groups whose pulls were made to agree, and what the record should know of it.

    ``updates`` are pairs of group and update, read once; kept are two sums for each group. With num_m and den_m the
    sums of ``merged_bank`` over group m alone, and W_m its examples, m holds an entry if ``den_m > damping W_m``: a
    group hardly any of whose layers belong to a slot could else stop all others. In a part that the groups m hold, o_m
    is the mean of den_m, and ``p_m = num_m / o_m`` what m wants. By the settings' rule, in each part,

        num <- sum_m num_m + O (rule(p, o / O) - sum_m (o_m / O) p_m),     O = sum_m o_m

    and the bank moves by ``step num / max(den, damping sum_c n_c)`` as ever. So what one group alone holds moves as in
    ``merged_bank`` to the bit, and so does all else where there is no conflict (but for ``soft``, which always weighs
    anew). Of the settings ``per`` and ``learning_rate`` do not count. The gradient that comes back is ``-num`` by site,
    (num_slots, size^2).

    Raises
    ------
    RoundError
        if there are no updates, or one does not fit the bank: the client and the reason are told.
    """
    whole, groups = RunningBank(bank), dict[str, RunningBank]()
    for group, update in updates:
        whole.add(update)
        groups.setdefault(group, RunningBank(bank)).add(update)
    plain = replace(settings, rule="mean", equalise=False)
    nums = {site: num.clone() for site, (num, _) in whole.sums.items()}
    pulls: dict[str, Params] = {group: {} for group in sorted(groups)}
    conflicts = 0
    for site, slot, holders, entries in _parts({group: groups[group] for group in pulls}, damping):
        own = torch.stack([groups[group].sums[site][0][slot, entries] for group in holders])  # (groups, entries)
        weights = torch.stack([groups[group].sums[site][1][slot, entries].mean() for group in holders])
        wanted, shares = own / weights[:, None], weights / weights.sum()
        if len(holders) > 1:
            draws = rng.child("bank", site, slot, *holders)
            turned = combined(wanted, shares, settings, draws) - combined(wanted, shares, plain, draws)
            nums[site][slot, entries] += weights.sum() * turned
        conflicts += num_conflicts(wanted)
        for group, pull in zip(holders, own, strict=True):
            pulls[group][repr((site, slot, holders))] = pull
    moved = whole.result(step=step, damping=damping, numerators=nums)
    record = Aligned({site: -num for site, num in nums.items()}, tuple(pulls), conflicts, cosines(pulls, pulls))
    return moved, record


def _parts(groups: Mapping[str, RunningBank], damping: float) -> Iterator[tuple[str, int, tuple[str, ...], Tensor]]:
    """The parts that are aligned, each on its own: site, slot, the groups that hold it, and its entries (k,)."""
    for site in dict.fromkeys(site for one in groups.values() for site in one.sums):
        there = {group: one for group, one in groups.items() if site in one.sums}
        held = torch.stack([one.sums[site][1] > damping * one.weight for one in there.values()])
        for slot, by_entry in enumerate(held.unbind(1)):  # (groups, entries)
            kinds, kind = by_entry.unique(dim=1, return_inverse=True)
            for number, holds in enumerate(kinds.unbind(1)):
                if bool(holds.any()):
                    yield site, slot, tuple(compress(there, holds.tolist())), (kind == number).nonzero()[:, 0]


# As a method uses it ------------------------------------------------------------

Align = Literal["none", "projection", "reference", "soft"]


class BankMerge(NamedTuple):
    """How a server merges updates into ``state["params"]``, the bank, and what its state holds besides for it.

    ``init(rng)`` gives that at first, and ``merge(state, updates)`` gives it after a round together with the new bank,
    under ``params``; ``updates`` are pairs of architecture and update. ``report`` is as of a method.
    """

    init: Callable[[Rng], dict[str, Any]]
    merge: Callable[[Tree, Iterable[tuple[str, BankUpdate]]], dict[str, Any]]
    report: Callable[[Tree], Mapping[str, Any]]


def bank_merge(align: Align, architectures: Sequence[str], *, step: float, damping: float) -> BankMerge:
    """The merge of updates as they are (``none``), or with architectures' pulls aligned by this rule (CMGA)."""

    def plain(state: Tree, updates: Iterable[tuple[str, BankUpdate]]) -> dict[str, Any]:
        unnamed = (update for _, update in updates)
        return {"params": merged_bank(state["params"], unnamed, step=step, damping=damping)}

    if align == "none":
        return BankMerge(lambda rng: {}, plain, reports_nothing)
    settings = AlignSettings(align)

    def aligned(state: Tree, updates: Iterable[tuple[str, BankUpdate]]) -> dict[str, Any]:
        draws = draws_of(state)
        bank, made = aligned_bank(state["params"], updates, settings, draws, step=step, damping=damping)
        return {"params": bank, **next_record(state, made, architectures)}

    return BankMerge(lambda rng: first_record(architectures, rng.child("align")), aligned, reported)
