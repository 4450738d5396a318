"""Clusters of aligned rows by the gradients of their embeddings, which stand in for labels that a party is not told."""

from __future__ import annotations

import torch
from torch import Tensor

from fedquilt.core.rng import Rng
from fedquilt.vertical.prototypes import unit


def clusters_of(gradients: Tensor, count: int, rng: Rng) -> Tensor:
    """The cluster of each row, int64 (n,), by k-means of the directions of its gradients.

    Rows of one class pull a classifier that has learned nothing yet in one direction, so that clusters are classes
    under other names.

    Parameters
    ----------
    gradients
        The gradient of the joint loss with respect to each row's embedding, (n, m).
    count
        The number of clusters; at most one for each row.
    rng
        The random stream of the first centres.

    Paper: few-shot-vfl, clusters
    """
    from sklearn.cluster import KMeans  # takes most of a second to import, and few runs need it

    directions = unit(gradients / gradients.norm(dim=1).mean().clamp_min(torch.finfo(gradients.dtype).tiny))
    found = KMeans(min(count, len(directions)), n_init=10, random_state=rng.integer(31)).fit_predict(directions.numpy())
    return torch.from_numpy(found).long()
