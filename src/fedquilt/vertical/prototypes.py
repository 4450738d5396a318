"""Class prototypes in a party's latent space, and the cosines of embeddings with them."""

from __future__ import annotations

import torch
from torch import Tensor

_SAFE = 1e-8
"""Added to a squared norm: an embedding of zeros, as of a blank image, has the unit vector 0 and a finite gradient."""


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., m) divided by their norms.

    Paper: proto-evfl, unit
    """
    return vectors * (vectors.square().sum(-1, keepdim=True) + _SAFE).rsqrt()


def cosines(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """The cosine of each embedding (n, m) with each class prototype (C, m), (n, C).

    Paper: proto-evfl, score
    """
    return unit(embeddings) @ unit(prototypes).T


def mean_cosines(prototypes: Tensor, knows: Tensor) -> Tensor:
    """The cosine of the prototypes of each two classes, (C, C): its mean over the parties that have learned both.

    0 where no party has. ``prototypes`` are (K, C, m), and ``knows`` says whether a party has learned a class, (K, C).
    """
    own = torch.stack([cosines(unit(one), one) for one in prototypes])  # (K, C, C)
    both = (knows.unsqueeze(1) & knows.unsqueeze(2)).to(own.dtype)
    return (own * both).sum(0) / both.sum(0).clamp_min(1)
