from __future__ import annotations

import math
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.data.partition import digest, partition, settings_problems
from fedquilt.data.partition_schemes import SCHEMES, RowLabels, deal

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
OWN = {
    "iid": {},
    "dirichlet": {"alpha": 1.0, "min_size": 5},
    "pathological": {"classes_per_client": 2},
    "pathological-dirichlet": {"classes_per_client": 2},
    "natural": {},
    "sites": {},
}


def cut(scheme: str, num_clients: int = 8, seed: int = 1, labels: np.ndarray = LABELS, **own: Any) -> list[np.ndarray]:
    groups = np.arange(len(labels)) % num_clients
    return list(partition(scheme, labels, num_clients, Rng(seed), groups=groups, **{**OWN[scheme], **own}))


def assert_every_row_once(parts: list[np.ndarray], count: int) -> None:
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert all(len(part) > 0 for part in parts)
    assert all(np.all(np.diff(part) > 0) for part in parts)
    assert all(part.dtype == np.int64 for part in parts)


def test_every_scheme_is_tested_here() -> None:
    assert set(OWN) == set(SCHEMES)


@settings(max_examples=25, deadline=None)
@given(
    scheme=st.sampled_from(list(OWN)),
    num_clients=st.integers(2, 12),
    num_classes=st.integers(2, 6),
    classes_per_client=st.integers(1, 6),
    count=st.integers(150, 400),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_row_is_used_exactly_once_and_the_split_replays(
    scheme: str, num_clients: int, num_classes: int, classes_per_client: int, count: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(count) % num_classes)
    own = dict(OWN[scheme])
    if "classes_per_client" in own:
        # at least one owner for every class, and no more classes than there are
        least = -(-num_classes // num_clients)
        own["classes_per_client"] = max(least, min(classes_per_client, num_classes))
    if scheme == "dirichlet":
        own = {"alpha": 5.0, "min_size": 1}
    parts = cut(scheme, num_clients, seed, labels, **own)
    assert len(parts) == num_clients
    assert_every_row_once(parts, count)
    assert digest(parts) == digest(cut(scheme, num_clients, seed, labels, **own))
    if "classes_per_client" in own:
        assert all(len(np.unique(labels[part])) <= own["classes_per_client"] for part in parts)


@pytest.mark.parametrize("scheme", [scheme for scheme in OWN if scheme not in ("natural", "sites")])
def test_another_seed_is_another_split(scheme: str) -> None:
    assert digest(cut(scheme, seed=1)) != digest(cut(scheme, seed=2))


@pytest.mark.parametrize("scheme", list(OWN))
def test_global_generators_are_neither_read_nor_moved(scheme: str) -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    first = digest(cut(scheme))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    np.random.seed(4)
    assert digest(cut(scheme)) == first


def test_iid_parts_are_equal_to_one() -> None:
    sizes = [len(part) for part in cut("iid", 7)]
    assert max(sizes) - min(sizes) <= 1


def test_rows_without_labels_can_be_cut_iid() -> None:
    parts = partition("iid", None, 3, Rng(1), num_examples=10)
    assert_every_row_once(list(parts), 10)


def flower_parts(kind: str, column: str, values: np.ndarray, *given: Any, **settings: Any) -> list[list[int]]:
    import flwr_datasets.partitioner as flower  # here, as it takes seconds and no other tests need it

    partitioner = getattr(flower, kind)(*given, **settings)
    partitioner.dataset = datasets.Dataset.from_dict({column: values.tolist(), "row": list(range(len(values)))})
    return [sorted(partitioner.load_partition(client)["row"]) for client in range(partitioner.num_partitions)]


@pytest.mark.parametrize("num_clients", [1, 7, 10])
def test_iid_is_the_one_of_flwr_datasets(num_clients: int) -> None:
    order = Rng(1).numpy().permutation(len(LABELS))
    expected = flower_parts("IidPartitioner", "label", LABELS[order], num_clients)
    parts = cut("iid", num_clients)
    assert [part.tolist() for part in parts] == [sorted(order[rows].tolist()) for rows in expected]


@pytest.mark.filterwarnings("ignore:The specified min_partition_size")  # of draws that are made again
@pytest.mark.parametrize(
    ("num_clients", "alpha", "min_size"),
    [(8, 1.0, 5), (1, 0.3, 0), (8, 0.05, 0), (40, 0.5, 1), (8, 0.4, 30)],
    ids=["usual", "one client", "clients without rows", "many clients", "drawn several times"],
)
def test_dirichlet_is_the_one_of_flwr_datasets(num_clients: int, alpha: float, min_size: int) -> None:
    seed = Rng(1).child("attempt", 0).integer(bits=32)
    given = {"alpha": alpha, "min_partition_size": min_size, "seed": seed}
    expected = flower_parts("DirichletPartitioner", "label", LABELS, num_clients, "label", **given)
    rows = RowLabels(len(LABELS), LABELS)
    owners = SCHEMES["dirichlet"](rows, num_clients, Rng(1), alpha=alpha, min_size=min_size)
    assert [np.flatnonzero(owners == client).tolist() for client in range(num_clients)] == expected


@pytest.mark.parametrize("num_clients", [10, 13])
def test_pathological_is_the_one_of_flwr_datasets(num_clients: int) -> None:
    how = {"class_assignment_mode": "first-deterministic", "seed": Rng(1).integer(bits=32)}
    expected = flower_parts("PathologicalPartitioner", "label", LABELS, num_clients, "label", 2, **how)
    assert [part.tolist() for part in cut("pathological", num_clients)] == expected


def test_natural_is_the_one_of_flwr_datasets() -> None:
    groups = np.array([30, 10, 20, 10, 30, 30])
    parts = partition("natural", None, 3, Rng(1), groups=groups)
    assert [part.tolist() for part in parts] == [[1, 3], [2], [0, 4, 5]]
    assert [part.tolist() for part in parts] == flower_parts("NaturalIdPartitioner", "group", groups, "group")


@pytest.mark.parametrize("scheme", ["pathological", "pathological-dirichlet"])
def test_fewer_clients_than_classes_still_use_every_class(scheme: str) -> None:
    parts = cut(scheme, num_clients=5)
    assert_every_row_once(parts, len(LABELS))
    assert [len(np.unique(LABELS[part])) for part in parts] == [2] * 5


def test_pathological_owners_share_a_class_equally() -> None:
    parts = cut("pathological", num_clients=6, classes_per_client=3)
    for label in range(10):
        sizes = [int((LABELS[part] == label).sum()) for part in parts]
        owned = [size for size in sizes if size]
        assert sum(owned) == 60
        assert max(owned) - min(owned) <= 1


@settings(max_examples=50, deadline=None)
@given(num_classes=st.integers(1, 12), num_clients=st.integers(1, 30), data=st.data(), seed=st.integers(0, 2**32))
def test_a_deal_is_even_and_never_gives_a_class_twice(num_classes: int, num_clients: int, data: Any, seed: int) -> None:
    per_client = data.draw(st.integers(1, num_classes))
    hands = deal(range(num_classes), num_clients, per_client, Rng(seed))
    assert all(len(set(hand)) == per_client for hand in hands)
    owners = Counter(label for hand in hands for label in hand)
    counts = [owners[label] for label in range(num_classes)]
    assert max(counts) - min(counts) <= 1


@settings(max_examples=25, deadline=None)
@given(beta=st.floats(0.05, 20), floor=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_every_owner_of_a_class_has_at_least_the_floor(beta: float, floor: int, seed: int) -> None:
    # 15 clients x 2 classes = 3 owners of each of 10 classes of 60 rows
    try:
        parts = cut("pathological-dirichlet", num_clients=15, seed=seed, beta=beta, floor=floor)
    except DataError:
        assert floor == 0  # only then may a client stay empty
        return
    for label in range(10):
        owned = sorted(int((LABELS[part] == label).sum()) for part in parts)[-3:]
        assert sum(owned) == 60
        assert min(owned) >= min(floor, 20)


def test_sizes_change_with_beta_and_owners_do_not() -> None:
    def owners(parts: list[np.ndarray]) -> list[list[int]]:
        return [np.unique(LABELS[part]).tolist() for part in parts]

    even = cut("pathological-dirichlet", num_clients=15, beta=1000.0, floor=1)
    uneven = cut("pathological-dirichlet", num_clients=15, beta=0.5, floor=1)
    assert owners(even) == owners(uneven)
    assert np.std([len(part) for part in uneven]) > 2 * np.std([len(part) for part in even])


def test_dirichlet_of_a_small_alpha_is_more_skewed() -> None:
    def spread(alpha: float) -> float:
        table = [np.bincount(LABELS[part], minlength=10) for part in cut("dirichlet", alpha=alpha, min_size=1)]
        return float(np.std(table))

    assert spread(0.2) > 2 * spread(50.0)


def test_digest_tells_splits_apart() -> None:
    one, two = np.array([0, 1]), np.array([2])
    assert digest([one, two]) == digest([one.astype(np.int32), two])
    assert len({digest([one, two]), digest([two, one]), digest([np.array([0]), np.array([1, 2])]), digest([one])}) == 4
    assert digest([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("scheme", "num_clients", "own", "said"),
    [
        (
            "dirichlett",
            8,
            {},
            r"partition\.scheme = 'dirichlett': no such scheme \(did you mean 'dirichlet'\?\); allowed: iid",
        ),
        ("iid", 8, {"alpha": 1.0}, r"partition\.alpha: scheme 'iid' has no such setting; allowed: none"),
        (
            "pathological",
            8,
            {"classes_per_clients": 2},
            r"'pathological' has no such setting \(did you mean 'classes_per_client'\?\)",
        ),
        ("dirichlet", 8, {}, r"partition\.alpha: scheme 'dirichlet' needs it; set it to a number above 0"),
        ("dirichlet", 8, {"alpha": -1}, r"partition\.alpha = -1: must be a number above 0"),
        ("dirichlet", 8, {"alpha": float("inf")}, r"partition\.alpha = inf: must be"),
        (
            "pathological",
            8,
            {"classes_per_client": 2.5},
            r"partition\.classes_per_client = 2\.5: must be a whole number, 1",
        ),
        (
            "pathological-dirichlet",
            8,
            {"classes_per_client": 2, "floor": -1},
            r"partition\.floor = -1: must be a whole",
        ),
        ("iid", 0, {}, r"partition\.num_clients = 0: at least 1 client"),
        ("iid", 601, {}, r"partition\.num_clients = 601: the data has 600 examples, fewer than clients; lower"),
        (
            "pathological",
            8,
            {"classes_per_client": 11},
            r"partition\.classes_per_client = 11: the data has 10 classes; set it to 10 or less",
        ),
        (
            "pathological-dirichlet",
            3,
            {"classes_per_client": 2},
            r"num_clients = 3 times classes_per_client = 2 is 6, fewer than the 10 classes, .* raise",
        ),
        ("pathological", 3, {"classes_per_client": 3}, r"num_clients = 3 times classes_per_client = 3 is 9"),
        (
            "pathological",
            600,
            {"classes_per_client": 2},
            r"with 600 clients a class has more owners than examples .class 0 has 60.; lower",
        ),
        (
            "dirichlet",
            8,
            {"alpha": 1.0, "min_size": 100},
            r"min_size = 100: 8 clients would need 800 examples .* has 600",
        ),
        (
            "dirichlet",
            60,
            {"alpha": 0.01},
            r"partition\.alpha = 0\.01: a hundred draws .* raise alpha, or lower min_size",
        ),
        (
            "dirichlet",
            200,
            {"alpha": 0.01, "min_size": 0},
            r"client \d+ of 200 has no examples; set partition\.min_size to 1",
        ),
        (
            "pathological-dirichlet",
            300,
            {"classes_per_client": 1, "beta": 0.01, "floor": 0},
            r"client \d+ of 300 has no examples; raise partition\.floor",
        ),
        ("natural", 8, {}, r"no client id column; set data\.group"),
    ],
)
def test_what_cannot_be_done_is_said(scheme: str, num_clients: int, own: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        partition(scheme, LABELS, num_clients, Rng(1), **own)


@pytest.mark.parametrize("value", [10**30, -(10**30), 10**400, 1e30, -1e30, math.nan, math.inf, True, "1", None, [1]])
def test_every_setting_of_every_scheme_has_two_ends(value: Any) -> None:
    for scheme, own in OWN.items():
        names = SCHEMES[scheme].__kwdefaults__ or {}
        names = {*names, *own}
        for name in names:
            (problem,) = settings_problems(scheme, {**own, name: value})
            assert problem.startswith(f"partition.{name} = ")
            assert ": must be a" in problem
            assert "1,000,000,000" in problem


def test_natural_asks_for_one_client_per_id() -> None:
    with pytest.raises(DataError, match=r"has 2 different ids .* set partition\.num_clients = 2"):
        partition("natural", None, 3, Rng(1), groups=np.array([0, 0, 5, 5]))


@pytest.mark.parametrize("scheme", ["dirichlet", "pathological", "pathological-dirichlet"])
def test_schemes_that_need_labels_say_so(scheme: str) -> None:
    with pytest.raises(DataError, match=rf"'{scheme}': needs labels and the data has none; set data\.label"):
        partition(scheme, None, 3, Rng(1), num_examples=30, **OWN[scheme])


def test_all_problems_with_the_settings_come_at_once() -> None:
    problems = settings_problems("pathological-dirichlet", {"beta": 0, "florr": 3})
    assert len(problems) == 3
    assert "did you mean 'floor'?" in problems[0]
    assert settings_problems("iid", {}) == []
