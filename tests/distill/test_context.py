"""Contexts: every number in its place."""

import torch

from fedquilt.distill.context import contexts, num_features
from fedquilt.distill.contrast import Pair
from fedquilt.distill.paths import Likelihood, Reading


def of(*totals, tokens=2):
    return Likelihood(torch.tensor(totals), torch.full((len(totals),), tokens))


def test_a_context_by_hand():
    taught = Reading(
        of(-2.0, -4.0, tokens=4), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    )
    found = contexts(taught, of(-6.0, -8.0), Pair(of(-10.0, -12.0), of(-14.0, -16.0)), torch.tensor([False, True]))
    expected = [[1, 2, 5, 6, -0.5, -3, -5, -7, 0.2, 0], [3, 4, 7, 8, -1, -4, -6, -8, 0.2, 1]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.shape[1] == num_features(2)
