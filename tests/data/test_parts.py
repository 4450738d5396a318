from __future__ import annotations

import numpy as np
import pytest

from fedquilt.core.rng import Rng
from fedquilt.data.holdout import split_client, split_clients
from fedquilt.data.parts import Parts, Splits

OWNERS = np.array([2, 0, 2, 1, 0, 2])
LISTS = [[1, 4], [3], [0, 2, 5]]


def test_parts_are_the_rows_of_each_client_ascending() -> None:
    parts = Parts.of_owners(OWNERS, 4)
    assert [part.tolist() for part in parts] == [*LISTS, []]
    assert parts.sizes.tolist() == [2, 1, 3, 0]
    assert (parts[-2].tolist(), [part.tolist() for part in parts[1:3]]) == ([0, 2, 5], LISTS[1:])
    assert [part.tolist() for part in Parts.of([np.array(rows[::-1]) for rows in LISTS])] == LISTS
    assert Parts.of(parts) is parts
    assert len(Parts.of([])) == 0
    with pytest.raises(IndexError):
        parts[4]


def test_parts_without_some_rows_keep_the_others() -> None:
    assert [part.tolist() for part in Parts.of_owners(OWNERS, 3).without(np.array([2, 4, 3]))] == [[1], [], [0, 5]]


@pytest.mark.parametrize("fractions", [(0.0, 0.0), (0.2, 0.0), (0.3, 0.2)])
def test_the_splits_of_many_clients_are_those_of_each(fractions: tuple[float, float]) -> None:
    labels, parts = np.arange(60) % 4, Parts.of_owners(np.arange(60) % 7, 7)
    shares = dict(zip(("test_fraction", "validation_fraction"), fractions, strict=True))
    ids = [1, 2, 3, 5, 8, 13, 21]
    splits = split_clients(ids, parts, labels, Rng(3), **shares)
    assert list(splits) == ids
    for place, (id, own) in enumerate(splits.items()):
        alone = split_client(parts[place], labels, Rng(3).child("client", id), **shares)
        for kind in ("train", "validation", "test"):
            assert getattr(own, kind).tolist() == getattr(alone, kind).tolist()
    here, counts = splits.num_train(range(1, 9))
    assert list(here) == [1, 2, 3, 5, 8]
    assert counts == [len(splits[id].train) if id in splits else 0 for id in range(1, 9)]
    assert splits.num_train(range(1, 4)) == (range(1, 4), counts[:3])
    assert splits.train_rows().tolist() == sorted(row for own in splits.values() for row in own.train.tolist())
    assert 4 not in splits
    assert 22 not in splits


def test_the_same_splits_belong_to_clients_with_other_numbers() -> None:
    splits = split_clients(range(3), Parts.of_owners(OWNERS, 3), None, Rng(1), test_fraction=0.5)
    moved = splits.numbered([4, 6, 9])
    assert list(moved) == [4, 6, 9]
    assert [own.test.tolist() for own in moved.values()] == [own.test.tolist() for own in splits.values()]


def test_the_numbers_of_clients_ascend() -> None:
    with pytest.raises(ValueError, match="ascending"):
        Splits([1, 0], [np.array([0]), np.array([1])])
