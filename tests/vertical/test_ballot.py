"""Classifiers that vote: by hand, with a party that is missing, and what the loss teaches."""

import torch
from torch.nn import functional

from fedquilt.core.rng import Rng
from fedquilt.vertical.ballot import ballot
from fedquilt.vertical.joint import Views
from fedquilt.vertical.prototypes import cosines


def views(present):
    generator = Rng(0).torch()
    embeddings = functional.normalize(torch.randn(2, 5, 4, generator=generator), dim=-1)
    prototypes = torch.randn(2, 3, 4, generator=generator).requires_grad_()
    seen = torch.ones(3, dtype=torch.bool)
    return Views(embeddings, prototypes, torch.tensor([present]).expand(5, -1), seen.expand(2, 3), seen)


def test_the_prediction_is_the_mean_of_the_probabilities_of_those_that_are_there():
    joint, both, one = ballot(0.5), views([True, True]), views([False, True])
    tensors = joint.init(2, 3, 4, Rng(1))
    head = (both.joined @ tensors["head.weight"].T + tensors["head.bias"]) / 0.5
    own = [cosines(both.embeddings[party], both.prototypes[party]) / 0.5 for party in (0, 1)]
    expected = sum(logits.softmax(1) for logits in (head, *own)) / 3
    torch.testing.assert_close(joint.scores(tensors, both).exp(), expected)
    less = (one.joined @ tensors["head.weight"].T + tensors["head.bias"]) / 0.5
    torch.testing.assert_close(joint.scores(tensors, one).exp(), (less.softmax(1) + own[1].softmax(1)) / 2)


def test_with_only_the_active_party_the_others_prototypes_do_not_learn():
    labels = torch.tensor([0, 1, 2, 0, 1])
    for only, moved in ((False, True), (True, False)):
        joint, rows = ballot(0.5, only_active=only), views([True, True])
        joint.loss(joint.init(2, 3, 4, Rng(1)), rows, labels).backward()
        gradients = rows.prototypes.grad.abs().sum((1, 2)) > 0
        assert gradients.tolist() == [moved, True]
