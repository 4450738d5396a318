"""Cross-view estimates: what the other parties would make of a row that they do not hold, and labels by agreement."""

from __future__ import annotations

import torch
from torch import Tensor

from fedquilt.vertical.prototypes import unit


def attention(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """The weight of each aligned row for each unaligned one, (n, N), each row's sum 1.

    Parameters
    ----------
    queries, keys
        The party's unit embeddings of its unaligned rows, (n, m), and of aligned rows, (N, m).
    temperature
        Cosines are divided by it.
    """
    return (queries @ keys.T / temperature).softmax(1)


def estimated(queries: Tensor, keys: Tensor, values: Tensor, temperature: float) -> Tensor:
    """The others' embeddings of unaligned rows, (n, K - 1, m): unit means over aligned rows that look alike.

    Parameters
    ----------
    queries, keys, temperature
        As for ``attention``.
    values
        The other parties' unit embeddings of the aligned rows, (N, K - 1, m). A party without any stays at zeros.

    Paper: fedcvt, estimate
    """
    return unit(torch.einsum("nr,rkm->nkm", attention(queries, keys, temperature), values))


def inserted(own: Tensor, others: Tensor, place: int) -> Tensor:
    """The embeddings of all parties side by side, (n, K m), with a party's ``own`` (n, m) at its ``place``.

    ``place`` is -1 for the last one.
    """
    place %= others.shape[1] + 1
    return torch.cat([others[:, :place], own.unsqueeze(1), others[:, place:]], 1).flatten(1)


def agreed(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The class that all classifiers choose, (n,), and whether they agree with probabilities above a threshold, (n,).

    ``logits`` are those of each classifier, (classifiers, n, C).

    Paper: fedcvt, agreement
    """
    probabilities, classes = logits.detach().softmax(2).max(2)
    return classes[0], (classes == classes[0]).all(0) & (probabilities > threshold).all(0)
