"""Cross-view estimates: attention, estimates by hand, places of parties, and agreement of classifiers."""

import torch
from torch.nn import functional

from fedquilt.core.rng import Rng
from fedquilt.vertical.estimation import agreed, attention, estimated, inserted


def drawn(*shape, seed=0):
    return functional.normalize(torch.randn(*shape, generator=Rng(seed).torch()), dim=-1)


def test_weights_of_a_row_sum_to_one_and_are_torchs_attention():
    queries, keys, values = drawn(5, 8), drawn(7, 8, seed=1), drawn(7, 2, 8, seed=2)
    weights = attention(queries, keys, 0.2)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    theirs = functional.scaled_dot_product_attention(queries, keys, values.flatten(1), scale=1 / 0.2).view(5, 2, 8)
    torch.testing.assert_close(estimated(queries, keys, values, 0.2), functional.normalize(theirs, dim=-1))


def test_a_cold_estimate_is_that_of_the_row_that_looks_alike():
    keys, values = torch.eye(3), drawn(3, 1, 4)
    torch.testing.assert_close(estimated(keys[1:2], keys, values, 1e-3), values[1:2])
    assert estimated(keys, keys, torch.zeros(3, 1, 4), 0.1).abs().max() == 0


def test_a_partys_own_embedding_stands_at_its_place():
    own, others = torch.full((1, 1), 9.0), torch.tensor([[[1.0], [2.0]]])
    assert inserted(own, others, 0).tolist() == [[9, 1, 2]]
    assert inserted(own, others, 1).tolist() == [[1, 9, 2]]
    assert inserted(own, others, -1).tolist() == [[1, 2, 9]]


def test_classifiers_agree_on_one_class_with_confidence():
    one = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]]).log()
    other = torch.tensor([[0.8, 0.2], [0.1, 0.9], [0.9, 0.1]]).log()
    classes, sure = agreed(torch.stack([one, other]), 0.7)
    assert classes.tolist() == [0, 0, 0]
    assert sure.tolist() == [True, False, False]
