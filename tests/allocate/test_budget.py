from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.allocate.budget import capability_groups, check_budgets, fractions, layers_of, sizes
from fedquilt.core.errors import ConfigError
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget


def test_shares_are_exact_fractions():
    assert fractions("1-1-1") == (Fraction(1, 3),) * 3
    assert fractions("6-3-1") == (Fraction(3, 5), Fraction(3, 10), Fraction(1, 10))
    assert fractions("1") == (Fraction(1),)
    assert fractions(" 2 - 2 ") == (Fraction(1, 2),) * 2


@pytest.mark.parametrize("text", ["", "1-", "-1-1", "1-0-1", "1.5-1", "1:1:1", "a-b", "1--1", "\u0661-1"])
def test_malformed_shares_are_refused_with_the_value(text):
    with pytest.raises(ConfigError, match="whole numbers above 0 joined by hyphens") as caught:
        fractions(text)
    assert f"clients.shares is '{text}'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "num_clients", "expected"),
    [
        ("1-1-1", 100, (33, 33, 34)),
        ("6-3-1", 100, (60, 30, 10)),
        ("1-1-1", 12, (4, 4, 4)),
        ("6-3-1", 20, (12, 6, 2)),
        ("6-3-1", 10, (6, 3, 1)),
        ("1-1-1", 3, (1, 1, 1)),
        ("1", 5, (5,)),
        ("3-3-4", 10, (3, 3, 4)),
        ("29-71", 100, (29, 71)),  # int(100 * 0.29) is 28 in floating point
    ],
)
def test_sizes_and_the_last_group_takes_the_remainder(text, num_clients, expected):
    assert sizes(fractions(text), num_clients) == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 500))
def test_sizes_add_up_and_are_near_the_shares(parts, extra):
    num_clients = sum(parts) + extra
    exact = fractions("-".join(map(str, parts)))
    assert sum(exact) == 1
    counts = sizes(exact, num_clients)
    assert sum(counts) == num_clients
    assert all(0 <= share * num_clients - count < 1 for share, count in zip(exact[:-1], counts[:-1], strict=True))


def test_groups_follow_client_order():
    assert capability_groups(fractions("1-1-1"), [6, 9, 12], 7) == tuple(Budget(n) for n in (6, 6, 9, 9, 12, 12, 12))


def test_shuffled_groups_keep_their_sizes_and_replay():
    plain = capability_groups(fractions("6-3-1"), [6, 9, 12], 50)
    mixed = capability_groups(fractions("6-3-1"), [6, 9, 12], 50, shuffle=Rng(1, ("groups",)))
    assert mixed != plain
    assert sorted(b.layers for b in mixed) == [b.layers for b in plain]
    assert mixed == capability_groups(fractions("6-3-1"), [6, 9, 12], 50, shuffle=Rng(1, ("groups",)))
    assert mixed != capability_groups(fractions("6-3-1"), [6, 9, 12], 50, shuffle=Rng(2, ("groups",)))


def test_one_budget_for_each_share():
    with pytest.raises(ConfigError, match=r"clients\.budgets has 2 numbers \(\[6, 9\]\).*3 groups; give one budget"):
        capability_groups(fractions("1-1-1"), [6, 9], 12)


@pytest.mark.parametrize(("text", "num_clients", "shown"), [("6-3-1", 3, "1, 0, 2"), ("1-1-1", 2, "0, 0, 2")])
def test_a_group_without_a_client_is_refused(text, num_clients, shown):
    with pytest.raises(
        ConfigError, match=r"every group needs at least one client: use more clients or fewer"
    ) as caught:
        capability_groups(fractions(text), [6, 9, 12], num_clients)
    assert f"{shown} of partition.num_clients = {num_clients}" in str(caught.value)


def test_budgets_within_the_depth_pass():
    assert check_budgets([1, 6, 12], 12) is None


def test_every_bad_budget_is_named():
    with pytest.raises(ConfigError) as caught:
        check_budgets([0, 6, 13, -2], 12)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "clients.budgets[0] is 0",
        "clients.budgets[2] is 13",
        "clients.budgets[3] is -2",
    ]
    assert "the model has 12 blocks" in str(caught.value)
    assert "from 1 to 12" in str(caught.value)


@pytest.mark.parametrize(
    ("depth", "layers"), [(1, (1, 1, 1)), (3, (2, 2, 3)), (6, (3, 5, 6)), (12, (6, 9, 12)), (24, (12, 18, 24))]
)
def test_shares_of_the_depth(depth, layers):
    assert layers_of(("50%", "75%", "100%"), depth) == layers


def test_numbers_of_layers_are_what_they_are_in_every_model():
    assert layers_of((1, 5, 40), 6) == (1, 5, 40)
    assert layers_of(("1%",), 12) == (1,)
