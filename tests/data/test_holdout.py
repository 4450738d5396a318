from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.data.holdout import carve_proxy, label_counts, split_client, split_clients, split_digest, stratified
from fedquilt.data.partition import partition

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 50))
PARTS = partition("pathological", LABELS, 8, Rng(1), classes_per_client=2)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), fraction=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_stratified_keeps_the_share_of_every_class(sizes: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = int(fraction * len(labels))
    drawn = stratified(np.arange(len(labels)), labels, count, Rng(seed))
    assert len(np.unique(drawn)) == len(drawn) == count
    for label, size in enumerate(sizes):
        assert abs((labels[drawn] == label).sum() - size * count / len(labels)) < 1 + 1e-9


def test_stratified_draws_every_row_equally_often() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1])
    hits = np.zeros(10)
    for seed in range(2000):
        hits[stratified(np.arange(10), labels, 3, Rng(seed))] += 1
    assert np.abs(hits / 2000 - 0.3).max() < 0.05  # five standard deviations


def test_stratified_does_not_depend_on_the_order_it_is_given() -> None:
    rows = np.arange(0, 200, 2)
    assert np.array_equal(stratified(rows, LABELS, 20, Rng(1)), stratified(rows[::-1], LABELS, 20, Rng(1)))
    assert len(stratified(rows, None, 7, Rng(1))) == 7


def test_the_proxy_leaves_every_other_row_where_it_was() -> None:
    proxy, rest = carve_proxy(PARTS, LABELS, 40, Rng(2))
    assert len(proxy) == 40
    # the one row that each client keeps makes the classes that are left slightly unequal
    assert np.abs(np.bincount(LABELS[proxy]) - 10).max() <= 1
    assert np.array_equal(np.sort(np.concatenate([proxy, *rest])), np.arange(200))
    for before, after in zip(PARTS, rest, strict=True):
        assert set(after) == set(before) - set(proxy)


def test_no_proxy_changes_nothing() -> None:
    proxy, rest = carve_proxy(PARTS, LABELS, 0, Rng(2))
    assert len(proxy) == 0
    assert all(np.array_equal(before, after) for before, after in zip(PARTS, rest, strict=True))


def test_every_client_keeps_a_row_beside_the_largest_proxy() -> None:
    proxy, rest = carve_proxy(PARTS, LABELS, 192, Rng(2))
    assert len(proxy) == 192
    assert [len(part) for part in rest] == [1] * 8
    with pytest.raises(
        DataError, match=r"data\.proxy = 193: the server can keep at most 192 rows of 200, .* lower data\.proxy"
    ):
        carve_proxy(PARTS, LABELS, 193, Rng(2))
    with pytest.raises(DataError, match=r"data\.proxy = -1: must be 0"):
        carve_proxy(PARTS, LABELS, -1, Rng(2))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), test=st.floats(0, 0.49), validation=st.floats(0, 0.49), seed=st.integers(0, 2**32))
def test_a_client_uses_every_row_once_and_keeps_one_to_train_on(
    count: int, test: float, validation: float, seed: int
) -> None:
    indices = np.arange(100, 100 + count)
    shares = split_client(indices, LABELS, Rng(seed), test_fraction=test, validation_fraction=validation)
    together = np.concatenate([shares.train, shares.validation, shares.test])
    assert np.array_equal(np.sort(together), indices)
    assert len(shares.train) >= 1
    wanted_test = max(1, round(count * test)) if test else 0
    assert len(shares.test) == min(wanted_test, count - 1)


def test_shares_are_stratified() -> None:
    shares = split_client(np.arange(200), LABELS, Rng(1), test_fraction=0.2, validation_fraction=0.1)
    assert np.bincount(LABELS[shares.test]).tolist() == [10, 10, 10, 10]
    assert np.bincount(LABELS[shares.validation]).tolist() == [5, 5, 5, 5]


def test_validation_does_not_move_the_test_rows_and_clients_do_not_move_each_other() -> None:
    ids = range(len(PARTS))
    plain = split_clients(ids, PARTS, LABELS, Rng(1), test_fraction=0.2)
    both = split_clients(ids, PARTS, LABELS, Rng(1), test_fraction=0.2, validation_fraction=0.2)
    changed = split_clients(ids, [PARTS[1], *PARTS[1:]], LABELS, Rng(1), test_fraction=0.2)
    alone = split_clients([2], [PARTS[2]], LABELS, Rng(1), test_fraction=0.2)
    for client in ids:
        assert np.array_equal(plain[client].test, both[client].test)
    for client in ids[1:]:
        assert np.array_equal(plain[client].train, changed[client].train)
    assert np.array_equal(plain[2].train, alone[2].train)
    none = np.empty(0, dtype=np.int64)
    again = split_clients(ids, PARTS, LABELS, Rng(1), test_fraction=0.2)
    assert split_digest([*plain.values()], none) == split_digest([*again.values()], none)
    digests = {split_digest([*shares.values()], kept) for shares, kept in ((plain, none), (both, none), (plain, [1]))}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("fractions", "said"),
    [
        ({"test_fraction": 1.0}, r"partition\.test_fraction = 1\.0: must be at least 0 and below 1"),
        ({"validation_fraction": -0.1}, r"partition\.validation_fraction = -0\.1: must be"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, r"leave no rows for training; their sum must be below 1"),
    ],
)
def test_impossible_fractions(fractions: dict[str, float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        split_client(np.arange(10), LABELS, Rng(1), **fractions)


def test_a_client_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="a client has no examples"):
        split_client(np.empty(0, dtype=np.int64), LABELS, Rng(1))


def test_label_counts_by_name() -> None:
    labels = np.array([0, 2, 2, 1, 2])
    parts = [np.array([0, 1, 2]), np.array([3, 4])]
    assert label_counts(parts, labels, ("ant", "bee", "cat")) == [{"ant": 1, "cat": 2}, {"bee": 1, "cat": 1}]
    assert label_counts(parts, None, ()) == [{}, {}]
