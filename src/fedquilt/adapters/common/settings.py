"""Settings of adapters in common coordinates, and of the public inputs that these coordinates come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedquilt.adapters.lora.settings import LoraSettings, Targeted, Targets
from fedquilt.adapters.mixture.settings import SharedSites
from fedquilt.core.settings import Count, RankOrZero, Rate, Share, Slots, Text


@dataclass(frozen=True)
class CommonHeadKeys:
    """The keys of a common head."""

    head_scale: Rate = 10.0
    """Scale of the common head; with AdamW it multiplies the head's learning rate."""


@dataclass(frozen=True)
class CommonKeys(CommonHeadKeys, SharedSites):
    """The keys of adapters in common coordinates in a run file."""

    private_rank: RankOrZero = 0
    """Rank of a LoRA whose factors are not shared across architectures."""
    private_targets: Targets | None = None
    """Names of the linear modules that get this LoRA, as in ``targets``; those with a core if left out."""
    private_alpha: Rate | None = None
    """Numerator of that LoRA's scale ``private_alpha / private_rank``; ``alpha`` if left out."""
    parts: Literal["together", "apart"] = "together"
    """How the common part (cores and common head) and the private LoRA make up a model. ``together``: in one pass.
    ``apart``, for classifiers: as two models on one base, each trained as if the other were not there, the private one
    with a head of its own; the mean of their logits counts, weighted as suits each client's validation rows, or
    evenly without such rows (``partition.validation_fraction``). This takes twice the steps and twice the passes."""


@dataclass(frozen=True)
class AnchoredKeys(CommonHeadKeys, Targeted):
    """The keys of adapters whose shared blocks are aligned to the smallest model, in a run file."""

    num_blocks: Slots = 4
    """Number of blocks of each model that share: equally spaced, the last among them; the others have plain LoRA."""
    bias: bool = True
    """Train a shared vector beside each shared matrix, which adds a bias to the module's output."""
    common_head: bool = False
    """Share a classifier's head across architectures too, instead of averaging it within each."""


@dataclass(frozen=True)
class CommonSettings(CommonKeys):
    """How one model is adapted; rank, sites and the number of slots are the same for all models that share."""

    num_slots: int = field(kw_only=True)
    private_targets: tuple[Text, ...] | None = None

    @property
    def scaling(self) -> float:
        """The scaling of the cores, ``s = alpha / r``."""
        return self.alpha / self.rank

    @property
    def private(self) -> LoraSettings:
        """Rank and scaling of the private LoRA; only with a ``private_rank``."""
        return LoraSettings(self.private_rank, self.alpha if self.private_alpha is None else self.private_alpha)


@dataclass(frozen=True)
class AnchoredSettings(AnchoredKeys):
    """How one model is adapted; rank and number of shared blocks are the same for all models that share."""

    targets: tuple[Text, ...] | None = field(default=None, kw_only=True)

    @property
    def scaling(self) -> float:
        """The scaling ``s = alpha / r`` of all adapters."""
        return self.alpha / self.rank

    @property
    def lora(self) -> LoraSettings:
        """The settings of the adapters in blocks that share nothing."""
        return LoraSettings(self.rank, self.alpha, targets=self.targets)


@dataclass(frozen=True)
class Axes:
    """Public inputs that every client has, from which models of different architectures get common coordinates.

    They are of the kind that the models read, need no labels, and hold no client's rows.
    """

    source: Text | None = None
    """Source of the public inputs, as ``data.source``; if left out, drawings of letters (``glyphs``) for models that
    read images, and passages of a novel (``passages``) for models that read text."""
    column: Text | None = None
    """Column of the text or image; that of [data] if left out."""
    inputs: Count = 1000
    """Number of inputs that the coordinates are made from."""
    held_out: Count = 200
    """Number of further inputs on which the agreement between models is measured."""
    rows: Literal["inputs", "tokens", "words"] = "inputs"
    """What counts as one observation. ``inputs``: an input, with the mean of its tokens' features. ``tokens``, for
    images: each token, for models that cut an image into the same tokens. ``words``, for text: the token at which a
    word ends, so that models with different tokenizers observe the same words."""
    words: Count = 8
    """Number of words, the first ones, that are observed of each text with ``rows = "words"``; shorter texts are left
    out. Every model must read as many within ``model.max_length``."""
    basis: Count = 96
    """Columns of the basis that an architecture sends for each site and slot; more is more exact."""
    share: Literal["all", "architecture"] = "all"
    """Among whom cores and common heads are averaged: over the clients of all architectures, or within each, which is
    the control without sharing across."""
    min_agreement: Share = 0.05
    """A run stops after the first round if the models' coordinates of held-out inputs correlate by less than this, and
    by less than 3 standard deviations of unrelated ones, at every place; 0 never stops it."""
    control: Literal["none", "rotated"] = "none"
    """``rotated`` is the control without common meaning: each architecture is given the coordinates rotated by a random
    orthogonal matrix of its own, in which it trains as well, and what clients share means something else in each."""
    ridge: Rate = 1e-3
    """Ridge of the features' covariance, as a fraction of their mean variance."""
