"""The server's bank of square matrices, and the merge of updates from clients of different ranks and depths.

The bank G holds, for each site (query, value, ...), one matrix (R, R) for each slot of depth: ``(num_slots, R, R)``. A
client is sent k entries of each matrix (``bank.entries``), ``(num_slots, k)``. It computes its layers' cores from them
by its own relation between slots and layers (``bank.relation``), which is local. It lifts the changes of its layers
back to the slots and returns the same entries with these changes, together with its coverage: the share of its layers
in each slot, ``sum_l P[j, l]``. Updates thus have the same shape for every width, depth and task.
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
"""Name of the coverage's tensor in orders and replies."""

_BANK = "bank."


@dataclass(frozen=True)
class BankUpdate:
    """One client's proposal for entries of the bank.

    Attributes
    ----------
    client
        The client's number.
    slots
        The proposed values, (num_slots, k) by site.
    entries
        The positions of these entries in a matrix, (k,) by site.
    coverage
        The share of the client's layers in each slot, (num_slots,).
    weight
        The client's weight in examples.
    """

    client: ClientId
    slots: Mapping[str, Tensor]
    entries: Mapping[str, Tensor]
    coverage: Tensor
    weight: float


def drawn_bank(sites: Sequence[str], num_slots: int, size: int, rng: Rng, deviation: float = 0.0) -> Params:
    """The initial bank of normal numbers with mean 0, ``(num_slots, R, R)`` by site.

    Parameters
    ----------
    sites
        The sites' names.
    num_slots, size
        The number of slots, and R.
    rng
        The random stream; every site has a child of its own.
    deviation
        The standard deviation; with 0 the bank is zero, which makes adapters plain LoRA.
    """

    def matrices(site: str) -> Tensor:
        if deviation == 0:
            return torch.zeros(num_slots, size, size)
        return deviation * torch.randn(num_slots, size, size, generator=rng.child("bank", site).torch())

    return {site: matrices(site) for site in sites}


def as_large(noise: Mapping[str, Tensor], bank: Mapping[str, Tensor]) -> Params:
    """The matrices of ``noise``, none of them 0, scaled to the Frobenius norms of those of ``bank``.

    As a control for the benefit of sharing: clients that gain as much from random matrices learned nothing from each
    other.
    """

    def scaled(drawn: Tensor, matrices: Tensor) -> Tensor:
        norms: Tensor = wide(matrices).flatten(1).norm(dim=1) / wide(drawn).flatten(1).norm(dim=1)
        return (wide(drawn) * norms[:, None, None]).to(matrices.dtype)

    return {site: scaled(noise[site], matrices) for site, matrices in bank.items()}


def offered(bank: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> Params:
    """The values of the bank at a client's entries, ``(num_slots, k)`` by site, as they are sent to it."""
    return {site: gathered(bank[site], own) for site, own in entries.items()}


def at_most(coverage: Tensor, num_layers: int) -> Tensor:
    """A coverage (num_slots,) with values of at least 0 and a sum of at most this number of layers, else scaled down.

    A sum of up to 1 % above, as from rounding on the wire, leaves the coverage unchanged.
    """
    inside = coverage.clamp(min=0)
    total = float(wide(inside).sum())
    return coverage if total <= 1.01 * num_layers else (wide(inside) * (num_layers / total)).to(coverage.dtype)


def merged_bank(
    bank: Mapping[str, Tensor], updates: Iterable[BankUpdate], *, step: float = 1.0, damping: float = 0.0
) -> Params:
    """The bank after a round: each entry becomes the weighted mean of the values from the clients that hold it.

    For entry e of slot j, with the weights n_c, coverages v_c and values D_c of the clients c that hold e:

        num = sum_c n_c v_c[j] (D_c[j, e] - G_j[e])        den = sum_c n_c v_c[j]
        G_j[e] <- G_j[e] + step num / max(den, damping sum_c n_c)

    ``damping`` (at least 0) reduces the step of a slot to which all layers are only weakly related. An entry that
    nobody holds, or that nobody changed, is bit-identical to before; a site that nobody sent is the same object. Sums
    are in float64, and the updates are read once. A coverage below 0 counts as 0.

    Raises
    ------
    RoundError
        if there are no updates, or one does not fit the bank (names the client and the reason).

    Paper: h2tune, merge
    """
    running = RunningBank(bank)
    for update in updates:
        running.add(update)
    return running.result(step=step, damping=damping)


class RunningBank:
    """Accumulator of ``merged_bank``: ``add`` each update, then call ``result``."""

    def __init__(self, bank: Mapping[str, Tensor]) -> None:
        self._bank = bank
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}  # num and den by site, (slots, entries)
        self.weight = 0.0

    def add(self, update: BankUpdate) -> None:
        """Add an update, which is not kept."""
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
        """The bank after the updates so far; ``numerators`` (by site, as in ``sums``) replace their own if given.

        Raises
        ------
        RoundError
            if there was no update.
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
    """The reason why an update cannot be merged into the bank, or None; all of it but the entries is untrusted."""
    if not (math.isfinite(update.weight) and update.weight > 0):
        return f"weight is {update.weight}; it must be a number above 0"
    if not update.slots:
        return "the update has no site"
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
    """Slots and coverage as named tensors of orders and replies: ``bank.query``, ``bank.value``, ..., ``coverage``."""
    return {**{_BANK + site: tensor for site, tensor in slots.items()}, COVERAGE: coverage}


def slots_in(params: Mapping[str, Tensor]) -> Params:
    """The slots among these tensors, by site."""
    return {name.removeprefix(_BANK): tensor for name, tensor in params.items() if name.startswith(_BANK)}


def exchange_bytes(num_slots: int, num_sites: int, num_entries: int, *, value_bytes: int = 4) -> int:
    """Bytes of tensors in each direction: ``J (S k + 1) v`` for J slots, S sites, k entries and v bytes per value.

    They do not depend on the width or the depth of a model.

    Paper: h2tune, payload
    """
    return num_slots * (num_sites * num_entries + 1) * value_bytes
