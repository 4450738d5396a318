"""What a party tells of itself with its embeddings: class prototypes, prior, rows by class, and which rows it kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from fedquilt.client.client import Client
from fedquilt.core.types import ClientId, Params, Range
from fedquilt.vertical.party import PartyState
from fedquilt.vertical.recipe import Recipe
from fedquilt.vertical.selection import NONE_SEEN

EMBEDDINGS, PROTOTYPES, PRIOR, COUNTS, KEPT = "embeddings", "prototypes", "prior", "counts", "kept"
MOST_CLASSES = 32
"""With more classes, tables by class would be longer than the rest of the record."""
LARGE = 1e4
"""The largest number in a prototype, and in a tensor that parties share."""
RANGES = {
    EMBEDDINGS: Range(-1.001, 1.001),
    PROTOTYPES: Range(-LARGE, LARGE),
    PRIOR: Range(0.0, 1.0),
    COUNTS: Range(0.0, 1e9, whole=True),
    KEPT: Range(NONE_SEEN, 1.0),
}


class Told(TypedDict):
    """What a passive party told last.

    Attributes
    ----------
    prototypes, prior
        Its class prototypes, (C, m), and its class prior, (C,).
    counts
        Its labelled rows by class, (C,).
    kept
        The share of each class that its selection kept in the round, (C,), see ``selection.Tally``; absent in methods
        that keep all rows.
    """

    prototypes: Tensor
    prior: Tensor
    counts: Tensor
    kept: NotRequired[Tensor]


def learned_counts(party: Client, classes: int, least: float) -> Tensor:
    """The party's labelled rows by class, float32 (C,), with 0 for a class that has less than this share of them.

    A party counts for the classes of which it tells rows, and a few wrong labels make no class that it has learned.
    """
    labels = party.train["labels"]
    counts = torch.bincount(labels[labels >= 0], minlength=classes).float()
    return counts * (counts >= least * counts.sum())


def told_of(party: Client, state: PartyState, recipe: Recipe, classes: int) -> Params:
    """What a party tells of itself."""
    if not recipe.prototypes:
        return {}
    counts = learned_counts(party, classes, recipe.least)
    told = {PROTOTYPES: state["prototypes"], PRIOR: state["prior"].float(), COUNTS: counts}
    return told | ({KEPT: state.get("kept", torch.full((classes,), NONE_SEEN))} if recipe.selects else {})


def told_shapes(recipe: Recipe, classes: int, width: int) -> Params:
    """The shapes of what a party tells of itself."""
    if not recipe.prototypes:
        return {}
    names = (PRIOR, COUNTS, *((KEPT,) if recipe.selects else ()))
    return {PROTOTYPES: torch.zeros(classes, width), **{name: torch.zeros(classes) for name in names}}


def told_by(params: Params, classes: int, width: int) -> Told:
    """What a reply tells of its party, with zeros for what the method does not ask."""
    empty = torch.zeros(classes)
    told = Told(
        prototypes=params.get(PROTOTYPES, torch.zeros(classes, width)),
        prior=params.get(PRIOR, empty),
        counts=params.get(COUNTS, empty),
    )
    if KEPT in params:
        told["kept"] = params[KEPT]
    return told


def kept_by(told: Mapping[ClientId, Told], own: PartyState, parties: Sequence[str]) -> Params:
    """The shares of each class that parties kept, by party; without those that told none, and with few classes.

    Parameters
    ----------
    told, own
        What the passive parties told in the round, and what the active one remembers.
    parties
        The names of all parties, the active one last.
    """
    if len(own["prior"]) > MOST_CLASSES:
        return {}
    found = {parties[id]: one["kept"] for id, one in sorted(told.items()) if "kept" in one}
    found |= {parties[-1]: own["kept"]} if "kept" in own else {}
    return {name: shares for name, shares in found.items() if (shares != NONE_SEEN).any()}
