"""Which entries a client of some rank has: nested, drawn, or chosen by scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.adapters.lora.core import square
from fedquilt.bank.entries import gathered
from fedquilt.bank.selection import drawn, leading, rank_within, strongest
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng

laws = settings(max_examples=100, deadline=None)


@st.composite
def sizes(draw):
    size = draw(st.integers(1, 9))
    return draw(st.integers(1, size)), size


def test_ranks_four_eight_and_sixteen_of_one_bank_are_nested():
    four, eight, sixteen = (set(leading(rank, 16).entries(16).tolist()) for rank in (4, 8, 16))
    assert four < eight < sixteen == set(range(256))
    assert len(four) == 16
    assert leading(2, 4).entries(4).tolist() == [0, 1, 4, 5]


@laws
@given(sizes(), st.integers(0, 2**32))
def test_h2_6_a_choice_has_its_size_and_is_sorted_and_unique(case, seed):
    """H2-6. The released code reshuffles its selection at every step (B7)."""
    rank, size = case
    scores = torch.randn(size, size, generator=Rng(seed).torch())
    grids = [lines.entries(size) for lines in (leading(rank, size), drawn(rank, size, Rng(seed)))]
    for entries in (*grids, strongest(scores, rank * rank)):
        assert entries.tolist() == sorted(set(entries.tolist()))
        assert len(entries) == rank * rank
        assert 0 <= int(entries.min()) <= int(entries.max()) < size * size


@laws
@given(sizes(), st.integers(0, 2**32))
def test_h2_6_at_full_rank_every_choice_is_the_matrix(case, seed):
    """H2-6. In the released code it is a permutation of the matrix (B8)."""
    _, size = case
    matrix = torch.randn(size, size, generator=Rng(seed).torch())
    chosen = [
        leading(size, size).entries(size),
        drawn(size, size, Rng(seed)).entries(size),
        strongest(matrix, size * size),
    ]
    for entries in chosen:
        assert torch.equal(square(gathered(matrix, entries), size), matrix)


@laws
@given(sizes(), st.integers(0, 2**32))
def test_h2_7_scores_that_rank_the_same_entries_otherwise_choose_the_same_part(case, seed):
    """H2-7. The released code's part is in the order of scores: a swap of two scores swaps its entries (B8)."""
    rank, size = case
    generator = Rng(seed).torch()
    scores = torch.randn(size, size, generator=generator)
    entries = strongest(scores, rank * rank)
    flat = scores.flatten().clone()
    # the magnitudes of those that were chosen, dealt anew among them, and with other signs
    flat[entries] = -flat[entries][torch.randperm(len(entries), generator=generator)]
    assert torch.equal(strongest(flat.view(size, size), rank * rank), entries)


def test_strength_is_magnitude_and_of_equals_the_first_is_taken():
    """The released code takes the largest signed scores (B8): it would choose entries 1 and 3."""
    scores = torch.tensor([[-5.0, 2.0], [-3.0, 2.5]])
    assert strongest(scores, 2).tolist() == [0, 2]
    assert strongest(torch.ones(3, 3), 4).tolist() == [0, 1, 2, 3]


def test_h2_18_a_draw_is_the_streams_own():
    """H2-18. In the released code each client draws from an unseeded global generator (B5)."""
    first, again, other = (drawn(5, 40, Rng(seed).child("entries", 3)) for seed in (1, 1, 2))
    assert torch.equal(first.rows, again.rows)
    assert torch.equal(first.columns, again.columns)
    assert not torch.equal(first.rows, other.rows)
    assert not torch.equal(first.rows, first.columns)


def test_h2_16_a_budget_of_bytes_buys_the_largest_rank_that_fits():
    """H2-16. The released code sends 12.85 MB for every client, whatever its rank."""
    assert rank_within(10 * 4 * 9, 10, 16) == 3
    assert rank_within(10 * 4 * 16 - 1, 10, 16) == 3
    assert rank_within(10 * 4 * 16, 10, 16) == 4
    assert rank_within(10**9, 10, 16) == 16
    assert rank_within(10 * 2 * 16 + 100, 10, 16, value_bytes=2, extra_bytes=100) == 4
    ranks = [rank_within(budget, 32, 16) for budget in range(128, 40_000, 997)]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) > 8


@pytest.mark.parametrize("make", [leading, lambda r, s: drawn(r, s, Rng(0))])
@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_the_bank_does_not_have_is_refused(make, rank):
    with pytest.raises(
        ConfigError, match=f"rank is {rank}; the server's matrices have 4 rows, so it must be from 1 to 4"
    ):
        make(rank, 4)


def test_too_small_a_budget_and_too_many_entries_are_refused():
    with pytest.raises(ConfigError, match="39 bytes are too few for 10 matrices: rank 1 takes 40"):
        rank_within(39, 10, 4)
    with pytest.raises(ConfigError, match="5 entries cannot be chosen of 4"):
        strongest(torch.ones(2, 2), 5)
