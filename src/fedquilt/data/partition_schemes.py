"""The schemes by which rows are assigned to clients; each gives the client of every row.

Where flwr-datasets has a scheme, the parts are those of its partitioner for the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Count, Positive, Whole
from fedquilt.data.parts import Parts


@dataclass(frozen=True)
class RowLabels:
    """What a scheme may look at: the number of rows, their labels and their natural client ids."""

    count: int
    labels: np.ndarray | None = None
    client_ids: np.ndarray | None = None


def iid(rows: RowLabels, num_clients: int, rng: Rng) -> np.ndarray:
    """A random order of the rows, cut into consecutive parts of equal size (to one)."""
    owners = np.empty(rows.count, dtype=np.int64)
    owners[rng.numpy().permutation(rows.count)] = np.repeat(
        np.arange(num_clients), _equal_sizes(rows.count, num_clients)
    )
    return owners


def dirichlet(rows: RowLabels, num_clients: int, rng: Rng, *, alpha: Positive, min_size: Whole = 10) -> np.ndarray:
    """Label skew: every class is shared out by ``p ~ Dirichlet(alpha, ..., alpha)``, as flwr-datasets does.

    Parameters
    ----------
    rows : the rows, with labels.
    num_clients : number of clients.
    rng : the random stream.
    alpha : concentration of the Dirichlet distribution; the lower, the more skewed the labels.
    min_size : the fewest rows of a client; the whole draw is repeated until every client has as many.
    """
    labels = _labels(rows, "dirichlet")
    if min_size * num_clients > rows.count:
        raise DataError(
            f"partition.min_size = {min_size}: {num_clients} clients would need {min_size * num_clients} examples "
            "and the data "
            f"has {rows.count}; lower partition.min_size or partition.num_clients"
        )
    by_class = list(_members(labels))
    for attempt in range(10):
        generator = rng.child("attempt", attempt).numpy(bits=32)
        for _ in range(_DRAWS):
            owners = np.empty(rows.count, dtype=np.int64)
            for _, members in by_class:
                ends = np.cumsum(generator.dirichlet(np.full(num_clients, float(alpha)))) * len(members)
                owners[members] = np.searchsorted(ends.astype(int)[:-1], np.arange(len(members)), side="right")
            if np.bincount(owners, minlength=num_clients).min() >= min_size:
                return owners
    raise DataError(
        f"partition.alpha = {alpha}: a hundred draws all left one of {num_clients} clients with fewer than "
        f"partition.min_size = {min_size} examples; raise alpha, or lower min_size or partition.num_clients"
    )


def pathological(rows: RowLabels, num_clients: int, rng: Rng, *, classes_per_client: Count) -> np.ndarray:
    """Every client owns ``classes_per_client`` classes, and the owners of a class share it equally (to one row).

    With at least as many clients as classes this is what flwr-datasets does: client ``i`` owns class ``i`` modulo the
    number of classes, and draws the others. With fewer clients, where that leaves classes unused, the classes are
    assigned by ``deal``.

    Parameters
    ----------
    rows : the rows, with labels.
    num_clients : number of clients.
    rng : the random stream.
    classes_per_client : number of classes of each client, at most that of the data.
    """
    labels = _labels(rows, "pathological")
    classes = _owned_classes(labels, num_clients, classes_per_client, "pathological")
    if num_clients >= len(classes):
        hands = _drawn(classes, num_clients, classes_per_client, rng.numpy(bits=32))
        owning = _owning(hands)
        if any(len(members) < len(owning[label]) for label, members in _members(labels)):
            smallest, size = _smallest(labels)
            raise DataError(
                f"partition.classes_per_client = {classes_per_client}: with {num_clients} clients a class has "
                "more owners than "
                f"examples (class {smallest} has {size}); lower classes_per_client or partition.num_clients, or "
                "raise data.limit"
            )
        return _shared_out(labels, hands, None, _equal_sizes)
    hands = deal(classes, num_clients, classes_per_client, rng.child("classes"))
    return _shared_out(labels, hands, rng, _equal_sizes)


def pathological_dirichlet(
    rows: RowLabels, num_clients: int, rng: Rng, *, classes_per_client: Count, beta: Positive = 1.0, floor: Whole = 10
) -> np.ndarray:
    """Every client owns some classes, assigned by ``deal``; the owners of a class share it unequally.

    A class of ``n`` rows with ``m`` owners gives each ``f = min(floor, n // m)`` rows and shares out the rest by
    ``p ~ Dirichlet(beta, ..., beta)``; what rounding leaves over goes to owners drawn at random, one row each.

    Different from the released code, classes, sizes and order derive from one split seed, and no client is assigned the
    same class twice.

    Parameters
    ----------
    rows : the rows, with labels.
    num_clients : number of clients.
    rng : the random stream.
    classes_per_client : number of classes of each client, at most that of the data.
    beta : concentration of the Dirichlet distribution; the lower, the more unequal the owners' shares of a class.
    floor : the fewest rows of a class that each of its owners gets, as far as the class has enough.

    Paper: fed-hello, pathological-dirichlet
    """
    labels = _labels(rows, "pathological-dirichlet")
    classes = _owned_classes(labels, num_clients, classes_per_client, "pathological-dirichlet")
    hands = deal(classes, num_clients, classes_per_client, rng.child("classes"))
    return _shared_out(
        labels,
        hands,
        rng,
        lambda count, owners, label: _dirichlet_sizes(count, owners, beta, floor, rng.child("sizes", label)),
    )


def natural(rows: RowLabels, num_clients: int, rng: Rng) -> np.ndarray:
    """One client for every value of the group column, in ascending order of the values; draws nothing.

    These are the parts of flwr-datasets' partitioner.
    """
    if rows.client_ids is None:
        raise DataError(
            "partition.scheme = 'natural': the data has no client id column; set data.group to the column that "
            "holds it, "
            "or use another scheme"
        )
    ids, owners = np.unique(rows.client_ids, return_inverse=True)
    found = len(ids)
    if found != num_clients:
        raise DataError(
            f"partition.num_clients = {num_clients}: the group column has {found} different ids and each is one "
            "client; "
            f"set partition.num_clients = {found}"
        )
    return owners


def sites(rows: RowLabels, num_clients: int, rng: Rng) -> np.ndarray:
    """Client i has the rows of group i, which are those of its own source; draws nothing."""
    return np.empty(0, dtype=np.int64) if rows.client_ids is None else rows.client_ids


SCHEMES: dict[str, Callable[..., np.ndarray]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "pathological": pathological,
    "pathological-dirichlet": pathological_dirichlet,
    "natural": natural,
    "sites": sites,
}


_DRAWS = 11
"""The draws of the Dirichlet partitioner of flwr-datasets before it gives up."""


def deal(classes: Sequence[int], num_clients: int, classes_per_client: int, rng: Rng) -> list[list[int]]:
    """Assign classes to every client in turn, from a shuffled list that is reshuffled when it is used up.

    No client is assigned a class twice. The numbers of clients of any two classes differ by at most one.
    """
    generator = rng.numpy()
    deck: list[int] = []
    hands = []
    for _ in range(num_clients):
        hand: list[int] = []
        while len(hand) < classes_per_client:
            if not deck:
                deck = generator.permutation(np.asarray(classes)).tolist()
            # just after a reshuffle the top card may be one that this client already holds
            card = next(card for card in deck if card not in hand)
            deck.remove(card)
            hand.append(card)
        hands.append(hand)
    return hands


def _drawn(
    classes: Sequence[int], num_clients: int, classes_per_client: int, generator: np.random.Generator
) -> list[list[int]]:
    """Client ``i`` has class ``i`` modulo the number of classes, and draws until it has enough different ones."""

    def drawn() -> Iterator[int]:
        while True:  # many at a time, which are the same ones and take a tenth of the time
            yield from generator.integers(len(classes), size=1024).tolist()

    numbers, hands = drawn(), []
    for client in range(num_clients):
        hand = [classes[client % len(classes)]]
        while len(hand) < classes_per_client:
            card = classes[next(numbers)]
            if card not in hand:
                hand.append(card)
        hands.append(hand)
    return hands


def _members(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Every class with its rows, both ascending."""
    classes, numbers = np.unique(labels, return_inverse=True)
    return zip(classes.tolist(), Parts.of_owners(numbers, len(classes)), strict=True)


def _owning(hands: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """The clients that have each class, ascending."""
    owning: dict[int, list[int]] = {}
    for client, hand in enumerate(hands):
        for label in hand:
            owning.setdefault(label, []).append(client)
    return owning


def _shared_out(
    labels: np.ndarray,
    hands: Sequence[Sequence[int]],
    shuffling: Rng | None,
    sizes: Callable[[int, int, int], np.ndarray],
) -> np.ndarray:
    """The client of every row, where every class is shared out to the clients that have it.

    Each gets so many rows of it as ``sizes(rows, clients, class)`` says. The rows are shuffled by ``shuffling``, or
    taken in their order.
    """
    owners, owning = np.empty(len(labels), dtype=np.int64), _owning(hands)
    for label, members in _members(labels):
        own = owning[label]
        rows = members if shuffling is None else shuffling.child("order", label).numpy().permutation(members)
        owners[rows] = np.repeat(own, sizes(len(rows), len(own), label))
    return owners


def _equal_sizes(count: int, owners: int, label: int = 0) -> np.ndarray:
    return count // owners + (np.arange(owners) < count % owners)


def _dirichlet_sizes(count: int, owners: int, beta: float, floor: int, rng: Rng) -> np.ndarray:
    generator = rng.numpy()
    least = min(floor, count // owners)
    rest = count - least * owners
    sizes = least + np.floor(generator.dirichlet(np.full(owners, beta)) * rest).astype(np.int64)
    sizes[generator.permutation(owners)[: count - int(sizes.sum())]] += 1
    return sizes


def _labels(rows: RowLabels, scheme: str) -> np.ndarray:
    if rows.labels is None:
        raise DataError(
            f"partition.scheme = '{scheme}': needs labels and the data has none; set data.label, or use scheme "
            "'iid' or 'natural'"
        )
    return rows.labels


def _owned_classes(labels: np.ndarray, num_clients: int, classes_per_client: int, scheme: str) -> list[int]:
    classes = np.unique(labels).tolist()
    if classes_per_client > len(classes):
        raise DataError(
            f"partition.classes_per_client = {classes_per_client}: the data has {len(classes)} classes; "
            f"set it to {len(classes)} or less"
        )
    if num_clients * classes_per_client < len(classes):
        raise DataError(
            f"partition.scheme = '{scheme}': num_clients = {num_clients} times classes_per_client = "
            f"{classes_per_client} is "
            f"{num_clients * classes_per_client}, fewer than the {len(classes)} classes, so some class would "
            "belong to nobody; "
            "raise partition.num_clients or partition.classes_per_client"
        )
    return list(classes)


def _smallest(labels: np.ndarray) -> tuple[int, int]:
    classes, sizes = np.unique(labels, return_counts=True)
    return int(classes[sizes.argmin()]), int(sizes.min())
