"""Alignment (CMGA) of the architectures' updates of the bank, of which each holds different entries.

The pull of a group of clients on an entry is its own numerator in ``bank.merge.merged_bank``: the sum of its clients'
updates, weighted by examples and coverage, and not divided by local steps. Pulls are aligned part by part. A part
consists of the entries of one slot of one site that the same groups hold, so that no group is compared on entries that
it does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fedquilt.aggregate.alignment.gradients import Aligned, combined, cosines, num_conflicts
from fedquilt.aggregate.alignment.wrapper import AlignmentState, draws_of, first_record, next_record, reported
from fedquilt.aggregate.settings import AlignSettings
from fedquilt.bank.merge import BankUpdate, RunningBank, merged_bank
from fedquilt.core.method import reports_nothing
from fedquilt.core.rng import Rng
from fedquilt.core.types import ModelState, Params, Tree


def aligned_bank(
    bank: Mapping[str, Tensor],
    updates: Iterable[tuple[str, BankUpdate]],
    settings: AlignSettings,
    rng: Rng,
    *,
    step: float = 1.0,
    damping: float = 0.0,
) -> tuple[Params, Aligned]:
    """The bank after a round, updated by the aligned pulls of the groups, and the alignment for the record.

    Let num_m and den_m be the sums of ``merged_bank`` over group m alone, and W_m its examples. Group m holds an entry
    if ``den_m > damping W_m``; a group with hardly any layer in a slot could otherwise block all others. In a part that
    the groups m hold, o_m is the mean of den_m, and ``p_m = num_m / o_m`` the mean update of m. In each part

        num <- sum_m num_m + O (rule(p, o / O) - sum_m (o_m / O) p_m),     O = sum_m o_m

    with the rule of the settings, and the bank moves by ``step num / max(den, damping sum_c n_c)`` as in
    ``merged_bank``. Entries that only one group holds, and parts without conflicts, are therefore bit-identical to
    ``merged_bank`` (except with ``soft``, which always changes the weights). The returned gradient is ``-num`` by site,
    (num_slots, size^2).

    Parameters
    ----------
    bank
        The server's bank.
    updates
        Pairs of group and update, which are read once; two sums are kept for each group.
    settings
        How to align; ``per`` and ``learning_rate`` have no effect.
    rng
        The stream of the projection's random orders.
    step, damping
        As for ``merged_bank``.

    Raises
    ------
    RoundError
        if there are no updates, or one does not fit the bank (names the client and the reason).
    """
    whole, groups = RunningBank(bank), dict[str, RunningBank]()
    for group, update in updates:
        whole.add(update)
        groups.setdefault(group, RunningBank(bank)).add(update)
    plain = replace(settings, align="mean", align_equalise=False)
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
    """Yield the parts that are aligned: site, slot, the groups that hold it, and its entries (k,)."""
    for site in dict.fromkeys(site for one in groups.values() for site in one.sums):
        there = {group: one for group, one in groups.items() if site in one.sums}
        held = torch.stack([one.sums[site][1] > damping * one.weight for one in there.values()])
        for slot, by_entry in enumerate(held.unbind(1)):  # (groups, entries)
            kinds, kind = by_entry.unique(dim=1, return_inverse=True)
            for number, holds in enumerate(kinds.unbind(1)):
                if bool(holds.any()):
                    yield site, slot, tuple(compress(there, holds.tolist())), (kind == number).nonzero()[:, 0]


# As a method uses it ------------------------------------------------------------

BankAlign = Literal["none", "projection", "reference", "soft"]


class AlignedBank(ModelState, AlignmentState):
    """The state of a server that aligns the architectures' updates of the bank, ``params``."""


class BankMerge(NamedTuple):
    """How a server merges updates into the bank, ``state["params"]``.

    ``init(rng)`` gives the further initial entries of the state. ``merge(state, updates)`` gives the new bank, under
    ``params``, and these entries after a round; ``updates`` are pairs of architecture and update. ``report`` is as in
    ``core.method.Method``.
    """

    init: Callable[[Rng], Tree]
    merge: Callable[[Tree, Iterable[tuple[str, BankUpdate]]], ModelState]
    report: Callable[[Tree], Mapping[str, Any]]


def bank_merge(align: BankAlign, architectures: Sequence[str], *, step: float, damping: float) -> BankMerge:
    """The merge of updates without alignment (``none``), or with the architectures' pulls aligned by this rule."""

    def plain(state: ModelState, updates: Iterable[tuple[str, BankUpdate]]) -> ModelState:
        unnamed = (update for _, update in updates)
        return {"params": merged_bank(state["params"], unnamed, step=step, damping=damping)}

    if align == "none":
        return BankMerge(lambda rng: {}, plain, reports_nothing)
    settings = AlignSettings(align)

    def aligned(state: AlignedBank, updates: Iterable[tuple[str, BankUpdate]]) -> AlignedBank:
        draws = draws_of(state)
        bank, made = aligned_bank(state["params"], updates, settings, draws, step=step, damping=damping)
        return {"params": bank, **next_record(state, made, architectures)}

    return BankMerge(lambda rng: first_record(architectures, rng.child("align")), aligned, reported)
