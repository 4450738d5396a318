"""What a party minimises on its unaligned rows, and the active party on aligned ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fedquilt.vertical.fusion import fused
from fedquilt.vertical.prototypes import cosines
from fedquilt.vertical.selection import Selection, row_weights, tag_costs, tags
from fedquilt.vertical.transport import Transport, transport, transport_loss


class Weights(NamedTuple):
    """Weights of the parts of both losses, and the temperature of all cosines.

    Attributes
    ----------
    unaligned, transported : of the cross-entropy and of the transport on unaligned rows.
    fused, each_party, head : of the cross-entropies on aligned rows: of the fused scores, of every party's own on the
        mean, and of a plain classifier over all embeddings.
    temperature : by which cosines are divided.
    """

    unaligned: float = 1.0
    transported: float = 0.1
    fused: float = 0.5
    each_party: float = 0.5
    head: float = 1.0
    temperature: float = 0.1


def unaligned_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    prior: Tensor,
    labels: Tensor | None,
    selection: Selection,
    weights: Weights,
    known: Tensor | None = None,
) -> Tensor:
    """A party's loss on a batch of its unaligned rows, with no other party.

    The transport is by uniform weights and with the prototypes held: it moves the encoder alone.

    Parameters
    ----------
    embeddings
        What the encoder makes of the rows, (n, m).
    prototypes
        Of each class, (C, m).
    prior
        The mixed prior, (C,).
    labels
        Of each row, (n,); None where the party has none, and rows are tagged by the likeliest class.
    selection
        How rows are selected and weighted.
    weights
        Of the parts, and the temperature.
    known
        The classes that compete, (C,) boolean, those of all labels among them; None for all.

    Paper: proto-evfl, unaligned-loss
    """
    scores = cosines(embeddings, prototypes)
    even = torch.full_like(scores[:, 0], 1 / len(scores))
    held = cosines(embeddings, prototypes.detach())
    prior = prior.to(scores.dtype)
    if known is not None:
        scores = scores.masked_fill(~known, float("-inf"))
        prior = prior * known / (prior * known).sum()
    carried = transport(held, prior, even, weights.temperature)
    own, chosen = _weighed(carried, held, labels, selection)
    entropy = functional.cross_entropy(scores / weights.temperature, own, reduction="none")
    return weights.unaligned * (chosen @ entropy) + weights.transported * transport_loss(carried, prior, even)


def kept_rows(
    embeddings: Tensor, prototypes: Tensor, prior: Tensor, labels: Tensor | None, selection: Selection, heat: float
) -> tuple[Tensor, Tensor]:
    """The class that each row of a batch stands for, (n,), and whether it is learned from, (n,) boolean.

    Parameters
    ----------
    embeddings, prototypes, prior, labels, selection
        As for ``unaligned_loss``.
    heat
        The temperature of cosines.
    """
    with torch.no_grad():
        scores = cosines(embeddings, prototypes)
        even = torch.full_like(scores[:, 0], 1 / len(scores))
        own, chosen = _weighed(transport(scores, prior.to(scores.dtype), even, heat), scores, labels, selection)
    return own, chosen > 0


def _weighed(carried: Transport, scores: Tensor, labels: Tensor | None, selection: Selection) -> tuple[Tensor, Tensor]:
    """The class that each row stands for, and its weight."""
    own = tags(carried, labels)
    return own, row_weights(tag_costs(carried, scores, labels), own, selection)


def aligned_loss(
    scores: Sequence[Tensor],
    gate: Tensor,
    knows: Tensor,
    head: Tensor,
    labels: Tensor,
    weights: Weights,
    *,
    unseen: bool = True,
) -> Tensor:
    """The active party's loss on a batch of aligned rows.

    Parameters
    ----------
    scores
        The cosines of every party, each (n, C).
    gate
        The gate's weights, (n, K).
    knows
        Whether each party has learned each class, (K, C), boolean.
    head
        The logits of a plain classifier over all embeddings, (n, C).
    labels
        Of each row, (n,).
    weights
        Of the parts, and the temperature.
    unseen
        Whether classes that a party, or nobody, has learned compete in its scores too.

    Paper: proto-evfl, aligned-loss
    """
    heat, out = weights.temperature, float("-inf")
    whole, parts = fused(torch.stack(tuple(scores)), gate, knows), scores
    if not unseen:
        whole = whole.masked_fill(~knows.any(0), out)
        parts = [own.masked_fill(~mask, out) for own, mask in zip(scores, knows, strict=True)]
    joint = functional.cross_entropy(whole / heat, labels)
    each = each_party_loss([own / heat for own in parts], labels)
    plain = functional.cross_entropy(head, labels)
    return weights.fused * joint + weights.each_party * each + weights.head * plain


def each_party_loss(logits: Sequence[Tensor] | Tensor, labels: Tensor) -> Tensor:
    """The mean over parties of the cross-entropy of each one's own logits, each (n, C)."""
    return torch.stack([functional.cross_entropy(own, labels) for own in logits]).mean()
