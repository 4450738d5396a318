"""Prior probabilities of the classes: of a party's unaligned rows, of all parties', and a mixture of both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def histogram(labels: Tensor, num_classes: int, smoothing: float = 1.0) -> Tensor:
    """The share of each class among labels, each count raised by ``smoothing``, (C,); even where there are none.

    Paper: proto-evfl, local-prior
    """
    counts = torch.bincount(labels, minlength=num_classes).double() + smoothing
    total = counts.sum()
    return counts / total if total > 0 else torch.full_like(counts, 1 / num_classes)


def learned(prior: Tensor, forward: Tensor, rate: float) -> Tensor:
    """One damped step of expectation maximisation: ``(1 - rate) q + rate mean_i pi(c | i)``, for rows without labels.

    Paper: proto-evfl, learned-prior
    """
    return (1 - rate) * prior + rate * forward.mean(0).to(prior)


def global_prior(aligned: Tensor, own: Sequence[Tensor], sizes: Sequence[int], aligned_share: float = 0.5) -> Tensor:
    """The aligned rows' histogram, mixed with the mean of the parties' priors, weighted by their numbers of rows.

    Parameters
    ----------
    aligned
        The share of each class among the aligned rows, (C,).
    own, sizes
        The prior of each party, (C,), and its number of unaligned rows; without any such row, ``aligned`` is returned.
    aligned_share
        The weight of the aligned rows.

    Paper: proto-evfl, global-prior
    """
    total = sum(sizes)
    if not total:
        return aligned
    mean = torch.stack([prior * (size / total) for prior, size in zip(own, sizes, strict=True)]).sum(0)
    return aligned_share * aligned + (1 - aligned_share) * mean


def mixed(local: Tensor, all_parties: Tensor, local_share: float = 0.5) -> Tensor:
    """The prior that guides a party: ``local_share`` of its own, the rest of all parties'.

    Paper: proto-evfl, mixed-prior
    """
    return local_share * local + (1 - local_share) * all_parties
