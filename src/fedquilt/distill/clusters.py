"""Clusters of samples, from each of which some are taken while nothing has been learned yet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedquilt.core.rng import Rng

_ROUNDS = 50
"""The largest number of times that centres move."""


def k_means(rows: Tensor, count: int, rng: Rng) -> Tensor:
    """The cluster of each row, (rows,), with numbers from 0 without gaps: at most ``count`` clusters, none empty.

    Lloyd's algorithm from centres that are drawn one after another, in proportion to the squared distance to the
    nearest earlier one (k-means++). There are fewer clusters where there are fewer distinct rows.
    """
    generator = rng.torch()
    points = rows.double()
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centres) < min(count, len(points)):
        distances = torch.cdist(points, centres).amin(1).square()
        if not distances.sum() > 0:
            break
        centres = torch.cat([centres, points[torch.multinomial(distances, 1, generator=generator)]])
    own: Tensor = torch.cdist(points, centres).argmin(1)
    for _ in range(_ROUNDS):
        _, own = own.unique(return_inverse=True)  # a cluster that became empty is gone
        centres = torch.stack([points[own == cluster].mean(0) for cluster in range(int(own.max()) + 1)])
        nearest = torch.cdist(points, centres).argmin(1)
        if torch.equal(nearest, own):
            break
        own = nearest
    _, own = own.unique(return_inverse=True)
    return own


def cover(rows: Tensor, share: float, count: int, rng: Rng) -> Tensor:
    """Positions, increasing, of the rows nearest to the centre of each cluster: this share of it, rounded up.

    Paper: lada, first-round
    """
    own = k_means(rows, count, rng)
    found = []
    for cluster in range(int(own.max()) + 1):
        members = (own == cluster).nonzero().squeeze(1)
        distances = (rows[members] - rows[members].mean(0)).norm(dim=1)
        found.append(members[distances.argsort(stable=True)[: num_of_share(share, len(members))]])
    return torch.cat(found).sort().values


def num_of_share(share: float, count: int) -> int:
    """A share of ``count``, rounded up; of anything at least 1."""
    return min(count, max(1, math.ceil(share * count - 1e-9)))
