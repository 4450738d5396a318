"""H2-6: what is gathered is scattered back; a full choice is the matrix itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.core.entries import entries_problem, gathered, grid, scattered, square
from fedquilt.core.rng import Rng

laws = settings(max_examples=100, deadline=None)


@st.composite
def choices(draw):
    """A stack of matrices, and entries of them: the same for all layers, or each layer's own."""
    size, layers = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    count = draw(st.integers(1, size * size))
    generator = Rng(draw(st.integers(0, 2**32))).torch()

    def some():
        return torch.randperm(size * size, generator=generator)[:count].sort().values

    entries = torch.stack([some() for _ in range(layers)]) if draw(st.booleans()) else some()
    return torch.randn(layers, size, size, generator=generator), entries, size


def test_a_grid_is_the_submatrix_in_which_rows_and_columns_meet():
    matrix = torch.arange(16.0).view(4, 4)
    entries = grid(torch.tensor([0, 2]), torch.tensor([1, 3]), 4)
    assert entries.tolist() == [1, 3, 9, 11]
    assert square(gathered(matrix, entries), 2).tolist() == [[1.0, 3.0], [9.0, 11.0]]


def test_values_that_do_not_fill_a_square_leave_zeros():
    assert square(torch.tensor([1.0, 2.0, 3.0]), 2).tolist() == [[1.0, 2.0], [3.0, 0.0]]
    with pytest.raises(ValueError, match="5 values do not fit into a matrix of 2 rows and columns"):
        square(torch.zeros(5), 2)


@laws
@given(choices())
def test_h2_6_scattering_what_was_gathered_is_the_matrix_at_the_entries_and_zero_elsewhere(case):
    """H2-6. The released code's T is a permutation of its entries (B8), so putting values back meant nothing."""
    matrices, entries, size = case
    back = scattered(gathered(matrices, entries), entries, size)
    held = scattered(torch.ones(len(matrices), entries.shape[-1]), entries, size).bool()
    assert torch.equal(back[held], matrices[held])
    assert not back[~held].any()
    assert torch.equal(gathered(back, entries), gathered(matrices, entries))


@laws
@given(st.integers(1, 6), st.integers(0, 2**32))
def test_h2_6_at_full_size_the_part_is_the_whole(size, seed):
    """H2-6. In the released code full selection permutes the matrix: its top-k is in the order of scores (B8)."""
    matrices = torch.randn(2, size, size, generator=Rng(seed).torch())
    every = torch.arange(size)
    assert torch.equal(square(gathered(matrices, grid(every, every, size)), size), matrices)


def test_gradients_go_to_the_entries_that_were_taken_and_to_no_others():
    matrix = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    entries = torch.tensor([1, 5, 6])
    assert torch.autograd.gradcheck(lambda m: square(gathered(m, entries), 2), (matrix,))
    gathered(matrix, entries).sum().backward()
    assert matrix.grad.flatten().nonzero().flatten().tolist() == [1, 5, 6]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (torch.tensor([1, 1]), "sorted, none twice"),
        (torch.tensor([3, 1]), "sorted, none twice"),
        (torch.tensor([0, 9]), "reach from 0 to 9; they must be at least 0 and below 9"),
        (torch.tensor([-1, 2]), "reach from -1 to 2"),
        (torch.tensor([0.5]), "torch.float32 of shape"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), "of shape"),
    ],
)
def test_bad_entries_are_named(entries, words):
    assert words in entries_problem(entries, 9)


def test_good_entries_have_no_problem_and_a_grid_refuses_bad_lines():
    assert entries_problem(torch.tensor([[0, 8], [3, 4]]), 9) is None
    with pytest.raises(ValueError, match="columns must be sorted, none twice"):
        grid(torch.tensor([0]), torch.tensor([1, 1]), 3)
