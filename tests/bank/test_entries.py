"""H2-6: a part is its entries in their order; a full choice is the matrix itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.adapters.lora.core import square
from fedquilt.bank.entries import gathered, grid
from fedquilt.core.rng import Rng

laws = settings(max_examples=100, deadline=None)


def test_a_grid_is_the_submatrix_in_which_rows_and_columns_meet():
    matrix = torch.arange(16.0).view(4, 4)
    entries = grid(torch.tensor([0, 2]), torch.tensor([1, 3]), 4)
    assert entries.tolist() == [1, 3, 9, 11]
    assert square(gathered(matrix, entries), 2).tolist() == [[1.0, 3.0], [9.0, 11.0]]


def test_a_smaller_square_is_in_the_corner():
    assert square(torch.tensor([1.0, 2.0, 3.0, 4.0]), 3).tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
    for values in (5, 3, 16):
        with pytest.raises(ValueError, match=f"{values} values do not fill a square part of a matrix of 3"):
            square(torch.zeros(values), 3)


@laws
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32))
def test_h2_6_what_is_taken_is_what_was_at_the_entries(size, layers, seed):
    """H2-6. The released code's T is a permutation of its entries (B8)."""
    generator = Rng(seed).torch()
    matrices = torch.randn(layers, size, size, generator=generator)
    count = int(torch.randint(1, size * size + 1, (1,), generator=generator))
    entries = torch.randperm(size * size, generator=generator)[:count].sort().values
    taken = gathered(matrices, entries)
    for place, entry in enumerate(entries.tolist()):
        assert torch.equal(taken[:, place], matrices[:, entry // size, entry % size])


@laws
@given(st.integers(1, 6), st.integers(0, 2**32))
def test_h2_6_at_full_size_the_part_is_the_whole(size, seed):
    """H2-6. In the released code full selection permutes the matrix: its top-k is in the order of scores (B8)."""
    matrices = torch.randn(2, size, size, generator=Rng(seed).torch())
    every = torch.arange(size)
    assert torch.equal(square(gathered(matrices, grid(every, every, size)), size), matrices)


def test_gradients_go_to_the_entries_that_were_taken_and_to_no_others():
    matrix = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    entries = torch.tensor([1, 4, 5, 6])
    assert torch.autograd.gradcheck(lambda m: square(gathered(m, entries), 2), (matrix,))
    gathered(matrix, entries).sum().backward()
    assert matrix.grad.flatten().nonzero().flatten().tolist() == [1, 4, 5, 6]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (torch.tensor([1, 1]), "sorted and distinct"),
        (torch.tensor([2, 1]), "sorted and distinct"),
        (torch.tensor([0, 3]), "reach from 0 to 3; they must be at least 0 and below 3"),
        (torch.tensor([-1, 2]), "reach from -1 to 2"),
        (torch.tensor([0.5]), "torch.float32 of shape"),
        (torch.zeros(1, 1, dtype=torch.int64), "of shape"),
    ],
)
def test_a_grid_refuses_bad_lines(lines, words):
    with pytest.raises(ValueError, match=f"columns .*{words}"):
        grid(torch.tensor([0]), lines, 3)
