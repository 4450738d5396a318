"""The server's bank of square matrices, and what clients of unlike ranks and depths add to it.

The bank G holds, for each site (query, value, ...), one matrix (R, R) for each slot of depth: ``(num_slots, R, R)``. A
client of rank r works with some entries of them (``core.entries``) and with its own relation between slots and layers
(``aggregate.layermap``). It sends what it changed at these entries, layer by layer, and its relation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedquilt.aggregate.layermap import relation_problem
from fedquilt.core.entries import entries_problem, gathered
from fedquilt.core.errors import RoundError
from fedquilt.core.params import wide
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId, Params, Reply

CHANGE, ENTRIES, RELATION = "change", "entries", "relation"
"""The names that the tensors of an update bear on their way: ``change.query``, ``entries.query``, ``relation``."""


@dataclass(frozen=True)
class BankUpdate:
    """What one client changed: by site the ``changes`` (num_layers, k) at ``entries``, (k,) or (num_layers, k).

    ``relation`` is (num_slots, num_layers), ``weight`` in examples.
    """

    client: ClientId
    changes: Mapping[str, Tensor]
    entries: Mapping[str, Tensor]
    relation: Tensor
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


def noise_like(bank: Mapping[str, Tensor], rng: Rng) -> Params:
    """A bank of pure noise in which each matrix has the Frobenius norm that it has in ``bank``; the same for a stream.

    The control for what sharing is worth: clients that gain as much from this learned nothing from one another.
    """

    def noise(site: str, matrices: Tensor) -> Tensor:
        drawn = torch.randn(matrices.shape, generator=rng.child("noise", site).torch(), dtype=torch.float64)
        norms = wide(matrices).flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)
        return (drawn * norms[:, None, None]).to(matrices.dtype)

    return {site: noise(site, matrices) for site, matrices in bank.items()}


def offered(bank: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> Params:
    """What of the bank a client of these entries needs: by its sites ``(num_slots, k)``, for its layers to be made of.

    Entries (num_layers, k), unlike from layer to layer, may need any of it: the matrices are then given whole.
    """
    return {site: gathered(bank[site], places) if places.dim() == 1 else bank[site] for site, places in entries.items()}


def merged_bank(
    bank: Mapping[str, Tensor], updates: Iterable[BankUpdate], *, step: float = 1.0, damping: float = 0.0
) -> Params:
    """The bank after a round, entry by entry the mean of what those who have it made of it.

    For entry e of slot j, with weights n_c, relations P and changes C over clients c and their layers l that hold e:

        num = sum_c n_c sum_l P_c[j, l] C_{c,l}[e]        den = sum_c n_c sum_l P_c[j, l]
        G_j[e] <- G_j[e] + step num / max(den, damping sum_c n_c)

    ``damping`` (at least 0) keeps a slot to which all layers are only loosely related from following them at full
    strength. An entry that nobody holds, or that nobody changed, keeps its bits; a site that nobody sent is the same
    object. Sums are in float64, the updates are read once.

    Raises
    ------
    RoundError
        if there are no updates, or one does not fit the bank: the client and the reason are told.

    Paper: h2tune, merge
    """
    totals: dict[str, tuple[Tensor, Tensor]] = {}
    total_weight = 0.0
    for update in updates:
        if problem := update_problem(bank, update):
            raise RoundError(f"client {update.client}: {problem}")
        total_weight += update.weight
        for site, changes in update.changes.items():
            if site not in totals:
                empty = torch.zeros_like(wide(bank[site].detach()).flatten(1))
                totals[site] = empty, empty.clone()
            _add(*totals[site], update, site, wide(changes.detach()))
    if not total_weight:
        raise RoundError("no updates to merge into the bank; at least one client must answer")
    return {
        site: _moved(matrices, *totals[site], step, damping * total_weight) if site in totals else matrices
        for site, matrices in bank.items()
    }


def _add(num: Tensor, den: Tensor, update: BankUpdate, site: str, changes: Tensor) -> None:
    # num and den are this function's caller's own sums, (num_slots, R^2)
    shares = update.weight * wide(update.relation.detach()).to(num.device)  # (num_slots, num_layers)
    entries = update.entries[site].long().expand(changes.shape).to(num.device)
    for layer, (places, values) in enumerate(zip(entries, changes.to(num.device), strict=True)):
        share = shares[:, layer, None].expand(-1, len(places))
        num.index_add_(1, places, share * values)
        den.index_add_(1, places, share)


def _moved(matrices: Tensor, num: Tensor, den: Tensor, step: float, least: float) -> Tensor:
    bound = den.clamp(min=least)
    move = (step * num / torch.where(bound > 0, bound, 1.0)).view(matrices.shape)
    return torch.where(move == 0, matrices.detach(), (wide(matrices.detach()) + move).to(matrices.dtype))


def update_problem(bank: Mapping[str, Tensor], update: BankUpdate) -> str | None:
    """Why an update, which is not trusted, cannot be merged into the bank, or None."""
    if not (math.isfinite(update.weight) and update.weight > 0):
        return f"weight is {update.weight}; it must be a number above 0"
    if not update.changes:
        return "the update is of no site"
    for site, changes in update.changes.items():
        if site not in bank or site not in update.entries:
            return f"the bank has no site '{site}', or no entries were sent for it"
        num_slots, size, _ = bank[site].shape
        entries = update.entries[site]
        if problem := entries_problem(entries, size * size):
            return f"entries of '{site}' {problem}"
        expected = changes.shape if entries.dim() == 2 else changes.shape[1:]
        if changes.dim() != 2 or entries.shape != expected:
            return f"changes of '{site}' are {tuple(changes.shape)}; its entries are {tuple(entries.shape)}"
        if not changes.is_floating_point() or not bool(torch.isfinite(changes).all()):
            return f"changes of '{site}' must be finite floating-point numbers"
        if problem := relation_problem(update.relation, num_slots, len(changes)):
            return problem
    return None


# The wire ------------------------------------------------------------


def to_params(update: BankUpdate, *, with_entries: bool = False) -> Params:
    """The tensors of an update as they travel; entries too if the server does not know them, in 2 or 4 bytes each."""
    params: Params = {f"{CHANGE}.{site}": changes for site, changes in update.changes.items()}
    if with_entries:
        params |= {f"{ENTRIES}.{site}": _short(update.entries[site]) for site in update.changes}
    return {**params, RELATION: update.relation}


def from_reply(reply: Reply, entries: Mapping[str, Tensor]) -> BankUpdate:
    """The update in a reply; ``entries`` are the client's, as the server knows them, for sites that came without.

    Columns of the relation that rounding on the way has moved off 1 a little sum to 1 again.

    Raises
    ------
    RoundError
        if the relation is missing, or a tensor is there that belongs to no update: nothing else may cross the network.
    """
    changes: Params = {}
    held = dict(entries)
    for name, tensor in reply.params.items():
        kind, _, site = name.partition(".")
        if kind == CHANGE and site:
            changes[site] = tensor
        elif kind == ENTRIES and site:
            held[site] = tensor
        elif name != RELATION:
            raise RoundError(f"client {reply.client} sent tensor '{name}', which is no part of an update of the bank")
    if RELATION not in reply.params:
        raise RoundError(f"client {reply.client} sent no tensor '{RELATION}'")
    return BankUpdate(reply.client, changes, held, _repaired(reply.params[RELATION]), reply.weight)


def upload_bytes(
    num_layers: int,
    num_slots: int,
    num_sites: int,
    num_entries: int,
    *,
    value_bytes: int = 4,
    index_bytes: int = 0,
    unlike_layers: bool = False,
) -> int:
    """Bytes that a client sends: its changes, its relation, and its entries if ``index_bytes`` is not 0.

    ``L S k v + L J v + i S k`` for L layers, S sites, k entries, J slots, v and i bytes; ``i L S k`` for entries that
    are unlike from layer to layer. No number depends on the width of the model.

    Paper: h2tune, payload
    """
    values = num_layers * num_sites * num_entries + num_layers * num_slots
    indices = num_sites * num_entries * (num_layers if unlike_layers else 1)
    return values * value_bytes + indices * index_bytes


def download_bytes(num_slots: int, num_sites: int, num_entries: int, *, value_bytes: int = 4) -> int:
    """Bytes of what a client is ``offered``: ``J S k v``, with k its entries, or R^2 where they are unlike by layer."""
    return num_slots * num_sites * num_entries * value_bytes


def _repaired(relation: Tensor) -> Tensor:
    # 28 slots of 1/28 each in int8 add up to 1.1 where another column holds a 1
    if relation.dim() != 2 or not relation.is_floating_point():
        return relation
    sums = wide(relation).sum(0)
    off = (sums - 1).abs()
    return torch.where((off > 1e-5) & (off < 0.25), wide(relation) / sums, wide(relation)).to(relation.dtype)


def _short(entries: Tensor) -> Tensor:
    fits = not entries.numel() or int(entries.max()) < 2**15
    return entries.to(torch.int16 if fits else torch.int32)
