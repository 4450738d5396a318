"""The schemes by which rows are assigned to clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Count, Positive, Whole
from fedquilt.data.readers import hub


@dataclass(frozen=True)
class RowLabels:
    """What a scheme may look at: the number of rows, their labels and their natural client ids."""

    count: int
    labels: np.ndarray | None = None
    client_ids: np.ndarray | None = None


def iid(rows: RowLabels, num_clients: int, rng: Rng) -> list[np.ndarray]:
    """A random order of the rows, cut into consecutive parts of equal size (to one)."""
    return np.array_split(rng.numpy().permutation(rows.count), num_clients)


def dirichlet(
    rows: RowLabels, num_clients: int, rng: Rng, *, alpha: Positive, min_size: Whole = 10
) -> list[np.ndarray]:
    """Label skew: every class is shared out by ``p ~ Dirichlet(alpha, ..., alpha)``.

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
    for attempt in range(10):
        seed = rng.child("attempt", attempt).integer(bits=32)
        try:
            return hub.dirichlet_parts(labels, num_clients, alpha, min_size, seed)
        except ValueError as error:
            cause = error
    raise DataError(
        f"partition.alpha = {alpha}: a hundred draws all left one of {num_clients} clients with fewer than "
        f"partition.min_size = {min_size} examples; raise alpha, or lower min_size or partition.num_clients"
    ) from cause


def pathological(rows: RowLabels, num_clients: int, rng: Rng, *, classes_per_client: Count) -> list[np.ndarray]:
    """Every client owns ``classes_per_client`` classes, and the owners of a class share it equally (to one row).

    With at least as many clients as classes this is flwr-datasets' partitioner; with fewer clients, for which that
    partitioner leaves classes unused, the classes are assigned by ``deal``.

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
        try:
            return hub.pathological_parts(labels, num_clients, classes_per_client, rng.integer(bits=32))
        except ValueError as error:
            smallest, size = _smallest(labels)
            raise DataError(
                f"partition.classes_per_client = {classes_per_client}: with {num_clients} clients a class has "
                "more owners than "
                f"examples (class {smallest} has {size}); lower classes_per_client or partition.num_clients, or "
                "raise data.limit"
            ) from error
    hands = deal(classes, num_clients, classes_per_client, rng.child("classes"))
    return _shared_out(labels, hands, rng, lambda count, owners, _: _equal_sizes(count, owners))


def pathological_dirichlet(
    rows: RowLabels, num_clients: int, rng: Rng, *, classes_per_client: Count, beta: Positive = 1.0, floor: Whole = 10
) -> list[np.ndarray]:
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
        labels, hands, rng, lambda count, owners, sizes: _dirichlet_sizes(count, owners, beta, floor, sizes)
    )


def natural(rows: RowLabels, num_clients: int, rng: Rng) -> list[np.ndarray]:
    """One client for every value of the group column, in ascending order of the values; draws nothing."""
    if rows.client_ids is None:
        raise DataError(
            "partition.scheme = 'natural': the data has no client id column; set data.group to the column that "
            "holds it, "
            "or use another scheme"
        )
    found = len(np.unique(rows.client_ids))
    if found != num_clients:
        raise DataError(
            f"partition.num_clients = {num_clients}: the group column has {found} different ids and each is one "
            "client; "
            f"set partition.num_clients = {found}"
        )
    return hub.natural_parts(rows.client_ids)


def sites(rows: RowLabels, num_clients: int, rng: Rng) -> list[np.ndarray]:
    """Client i has the rows of group i, which are those of its own source; draws nothing."""
    ids = np.empty(0) if rows.client_ids is None else rows.client_ids
    return [np.flatnonzero(ids == client) for client in range(num_clients)]


SCHEMES: dict[str, Callable[..., list[np.ndarray]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "pathological": pathological,
    "pathological-dirichlet": pathological_dirichlet,
    "natural": natural,
    "sites": sites,
}


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


def _shared_out(
    labels: np.ndarray, hands: Sequence[Sequence[int]], rng: Rng, sizes: Callable[[int, int, Rng], np.ndarray]
) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = [[] for _ in hands]
    for label in np.unique(labels).tolist():
        owners = [client for client, hand in enumerate(hands) if label in hand]
        members = rng.child("order", label).numpy().permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum(sizes(len(members), len(owners), rng.child("sizes", label)))[:-1]
        for owner, share in zip(owners, np.split(members, cuts), strict=True):
            parts[owner].append(share)
    return [np.concatenate(shares) for shares in parts]


def _equal_sizes(count: int, owners: int) -> np.ndarray:
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
