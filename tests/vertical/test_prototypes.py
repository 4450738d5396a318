"""How alike class prototypes are, over the parties that have learned them."""

from __future__ import annotations

import torch

from fedquilt.vertical.prototypes import mean_cosines


def test_cosines_of_prototypes_are_means_over_the_parties_that_know_both_classes() -> None:
    one = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    other = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    knows = torch.tensor([[True, True, False], [True, True, False]])
    found = mean_cosines(torch.stack([one, other]), knows)
    expected = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    alone = mean_cosines(torch.stack([one, other]), torch.tensor([[True, True, True], [False, False, False]]))
    torch.testing.assert_close(alone[0], torch.tensor([1.0, 0.0, 0.5**0.5]), atol=1e-6, rtol=0)
