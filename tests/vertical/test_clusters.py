"""Clusters of rows by gradients are the classes of the rows under other names."""

import torch
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional

from fedquilt.core.rng import Rng
from fedquilt.vertical.clusters import clusters_of


def test_gradients_of_a_classifier_that_has_learned_nothing_show_the_classes():
    generator = Rng(3).torch()
    embeddings = functional.normalize(torch.randn(60, 16, generator=generator), dim=1).requires_grad_()
    head = torch.randn(10, 16, generator=generator) / 4
    labels = torch.tensor([2, 5, 7]).repeat(20)
    functional.cross_entropy(embeddings @ head.T, labels).backward()
    found = clusters_of(embeddings.grad, 3, Rng(0))
    assert adjusted_rand_score(labels, found) == 1.0
    assert torch.equal(found, clusters_of(embeddings.grad, 3, Rng(0)))
    assert torch.equal(found, clusters_of(1e-6 * embeddings.grad, 3, Rng(0)))


def test_there_are_at_most_as_many_clusters_as_rows():
    assert sorted(clusters_of(torch.eye(2), 5, Rng(0)).tolist()) == [0, 1]
