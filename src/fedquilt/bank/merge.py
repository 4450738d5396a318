"""The server's bank of square matrices, and what clients of unlike ranks and depths make of it.

The bank G holds, for each site (query, value, ...), one matrix (R, R) for each slot of depth: ``(num_slots, R, R)``. A
client works with k entries of them (``bank.entries``) and is ``offered`` these, ``(num_slots, k)``. Its layers are made
of them by its own relation between slots and layers (``bank.relation``), which stays with it. What its layers
learned it lifts back to the slots, and sends the same entries again as it would have them, with its coverage: how much
of its layers belongs to each slot, ``sum_l P[j, l]``. So what goes up is a change of what came down, in one shape,
whatever the client's width, depth and task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedquilt.bank.entries import gathered
from fedquilt.core.errors import RoundError
from fedquilt.core.params import moved, wide
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Params

COVERAGE = "coverage"
"""The name that the coverage bears on its way."""

_BANK = "bank."


@dataclass(frozen=True)
class BankUpdate:
    """What one client would have of the bank: by site ``slots`` (num_slots, k) at ``entries`` (k,).

    ``coverage`` is (num_slots,), ``weight`` in examples.
    """

    client: ClientId
    slots: Mapping[str, Tensor]
    entries: Mapping[str, Tensor]
    coverage: Tensor
    weight: float


def drawn_bank(sites: Sequence[str], num_slots: int, size: int, rng: Rng, deviation: float = 0.0) -> Params:
    """The bank as a federation begins: normal numbers of this standard deviation; for 0, zeros: plain LoRA at first.

    The server draws it, once, and every client gets the same.
    """

    def matrices(site: str) -> Tensor:
        if deviation == 0:
            return torch.zeros(num_slots, size, size)
        return deviation * torch.randn(num_slots, size, size, generator=rng.child("bank", site).torch())

    return {site: matrices(site) for site in sites}


def as_large(noise: Mapping[str, Tensor], bank: Mapping[str, Tensor]) -> Params:
    """The bank ``noise`` with each of its matrices, none of them 0, as large as that of ``bank`` in Frobenius norm.

    With drawn noise it is the control for what sharing is worth: clients that gain as much from it learned nothing from
    one another.
    """

    def scaled(drawn: Tensor, matrices: Tensor) -> Tensor:
        norms: Tensor = wide(matrices).flatten(1).norm(dim=1) / wide(drawn).flatten(1).norm(dim=1)
        return (wide(drawn) * norms[:, None, None]).to(matrices.dtype)

    return {site: scaled(noise[site], matrices) for site, matrices in bank.items()}


def offered(bank: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> Params:
    """What of the bank a client of these entries is sent: ``(num_slots, k)`` by its sites."""
    return {site: gathered(bank[site], places) for site, places in entries.items()}


def at_most(coverage: Tensor, num_layers: int) -> Tensor:
    """A coverage (num_slots,) that belongs to so many layers: none below 0, and scaled down where the sum is more.

    Rounding on the wire is let pass: up to a hundredth more, all bits stay.
    """
    inside = coverage.clamp(min=0)
    total = float(wide(inside).sum())
    return coverage if total <= 1.01 * num_layers else (wide(inside) * (num_layers / total)).to(coverage.dtype)


def merged_bank(
    bank: Mapping[str, Tensor], updates: Iterable[BankUpdate], *, step: float = 1.0, damping: float = 0.0
) -> Params:
    """The bank after a round, entry by entry the mean of what those who have it made of it.

    For entry e of slot j, with weights n_c, coverages v_c and what the clients c that hold e would have, D_c:

        num = sum_c n_c v_c[j] (D_c[j, e] - G_j[e])        den = sum_c n_c v_c[j]
        G_j[e] <- G_j[e] + step num / max(den, damping sum_c n_c)

    ``damping`` (at least 0) keeps a slot to which all layers are only loosely related from following them at full
    strength. An entry that nobody holds, or that nobody changed, keeps its bits; a site that nobody sent is the same
    object. Sums are in float64, the updates are read once. A coverage below 0 counts as 0.

    Raises
    ------
    RoundError
        if there are no updates, or one does not fit the bank: the client and the reason are told.

    Paper: h2tune, merge
    """
    running = RunningBank(bank)
    for update in updates:
        running.add(update)
    return running.result(step=step, damping=damping)


class RunningBank:
    """``merged_bank`` for whoever reads the updates for something else besides: ``add`` each, then ask for
    ``result``."""

    def __init__(self, bank: Mapping[str, Tensor]) -> None:
        self._bank = bank
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}  # num and den by site, (slots, entries)
        self.weight = 0.0

    def add(self, update: BankUpdate) -> None:
        """Count an update in; it is not held."""
        if problem := update_problem(self._bank, update):
            raise RoundError(f"client {update.client}: {problem}")
        self.weight += update.weight
        for site, slots in update.slots.items():
            matrices = wide(self._bank[site].detach())
            if site not in self.sums:
                self.sums[site] = torch.zeros_like(matrices.flatten(1)), torch.zeros_like(matrices.flatten(1))
            num, den = self.sums[site]
            entries = update.entries[site].to(num.device)
            share = update.weight * wide(update.coverage.detach()).clamp(min=0).to(num.device)[:, None]  # (slots, 1)
            change = wide(slots.detach()).to(num.device) - gathered(matrices, entries)
            num.index_add_(1, entries, share * change)
            den.index_add_(1, entries, share.expand_as(change))

    def result(
        self, *, step: float = 1.0, damping: float = 0.0, numerators: Mapping[str, Tensor] | None = None
    ) -> Params:
        """The bank after the updates so far; with ``numerators`` (by site, as in ``sums``) in place of their own.

        Raises
        ------
        RoundError
            if there were none.
        """
        if not self.weight:
            raise RoundError("no updates to merge into the bank; at least one client must answer")
        nums = {site: num for site, (num, _) in self.sums.items()} if numerators is None else numerators
        least = damping * self.weight
        return {
            site: _stepped(matrices, nums[site], self.sums[site][1], step, least) if site in self.sums else matrices
            for site, matrices in self._bank.items()
        }


def _stepped(matrices: Tensor, num: Tensor, den: Tensor, step: float, least: float) -> Tensor:
    bound = den.clamp(min=least)
    move = (step * num / torch.where(bound > 0, bound, 1.0)).view(matrices.shape)
    return moved(matrices, move)


def update_problem(bank: Mapping[str, Tensor], update: BankUpdate) -> str | None:
    """Why an update, of which all but the entries come from outside, cannot be merged into the bank; or None."""
    if not (math.isfinite(update.weight) and update.weight > 0):
        return f"weight is {update.weight}; it must be a number above 0"
    if not update.slots:
        return "the update is of no site"
    for site, slots in update.slots.items():
        if site not in bank or site not in update.entries:
            return f"site '{site}' was not asked for"
        num_slots, expected = len(bank[site]), (len(bank[site]), len(update.entries[site]))
        if tuple(slots.shape) != expected:
            return f"the slots of '{site}' are {tuple(slots.shape)}, not {expected}"
        if not slots.is_floating_point() or not bool(torch.isfinite(slots).all()):
            return f"the slots of '{site}' must be finite floating-point numbers"
        if tuple(update.coverage.shape) != (num_slots,):
            return f"the coverage is {tuple(update.coverage.shape)}, not ({num_slots},)"
        if not update.coverage.is_floating_point() or not bool(torch.isfinite(update.coverage).all()):
            return "the coverage must be finite floating-point numbers"
    return None


# The wire ------------------------------------------------------------


def to_params(slots: Mapping[str, Tensor], coverage: Tensor) -> Params:
    """Slots and coverage as they travel, in both directions: ``bank.query``, ``bank.value``, ..., ``coverage``."""
    return {**{_BANK + site: tensor for site, tensor in slots.items()}, COVERAGE: coverage}


def slots_in(params: Mapping[str, Tensor]) -> Params:
    """The slots among these tensors, by site."""
    return {name.removeprefix(_BANK): tensor for name, tensor in params.items() if name.startswith(_BANK)}


def exchange_bytes(num_slots: int, num_sites: int, num_entries: int, *, value_bytes: int = 4) -> int:
    """Bytes of tensors that travel in each direction: ``J (S k + 1) v`` for J slots, S sites, k entries and v bytes.

    No number depends on the width of a model, nor on its depth.

    Paper: h2tune, payload
    """
    return num_slots * (num_sites * num_entries + 1) * value_bytes
