"""Offsets for classes that were never seen: by hand, as laws, and as they are chosen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.core.rng import Rng
from fedquilt.vertical.stacking import Recalls, Trial, best_offset, recalls, stacked


def trial(seed=0, rows=60, classes=4):
    generator = Rng(seed).torch()
    labels = torch.randint(0, classes, (rows,), generator=generator)
    scores = torch.randn(rows, classes, generator=generator)
    scores[range(rows), labels] += 2
    seen = torch.arange(classes) > 0
    return Trial(scores + 3.0 * seen, labels, seen)


@given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(0, 5))
def test_proto_9_a_larger_offset_finds_more_of_the_unseen_and_fewer_of_the_seen(seed, offset, more):
    one = trial(seed)
    before, after = recalls(one, offset), recalls(one, offset + more)
    assert after.unseen >= before.unseen
    assert after.seen <= before.seen


def test_proto_9_without_an_offset_it_is_the_largest_score():
    one = trial()
    assert torch.equal(stacked(one.scores, one.seen, 0.0), one.scores)
    assert torch.equal(stacked(one.scores, one.seen, 1.5)[:, 0], one.scores[:, 0])


def test_recalls_by_hand():
    scores = torch.tensor([[0.0, 2.0], [0.0, 0.5], [3.0, 1.0]])
    one = Trial(scores, torch.tensor([0, 0, 1]), torch.tensor([False, True]))
    assert recalls(one, 0.0) == Recalls(seen=0.0, unseen=0.0)
    assert recalls(one, 1.0) == Recalls(seen=0.0, unseen=0.5)
    assert Recalls(0.8, 0.4).harmonic == pytest.approx(2 * 0.32 / 1.2)
    assert Recalls(0.0, 0.0).harmonic == 0


def test_the_offset_that_was_added_is_found():
    found = best_offset([trial(seed) for seed in range(5)], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert found in (3.0, 4.0)
    assert best_offset([trial()], [100.0, 200.0]) == 100.0  # the smallest of equal ones


def test_nothing_to_choose_from_is_an_error():
    with pytest.raises(ValueError, match="0 trials and 1 offsets"):
        best_offset([], [1.0])
