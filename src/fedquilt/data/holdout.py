"""The server's proxy rows, and the split of each client's rows into training, validation and test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.core.types import ClientId
from fedquilt.data.partition import digest
from fedquilt.data.parts import TEST, VALIDATION, ClientRows, Parts, Splits


def stratified(indices: np.ndarray, labels: np.ndarray | None, count: int, rng: Rng) -> np.ndarray:
    """Draw ``count`` of the row numbers ``indices``, stratified by class to within one row; ascending.

    Systematic sampling: the shuffled rows are sorted by label, and every ``n / count``-th row is taken from a random
    start. ``labels`` are those of the whole data; with None the draw ignores classes.
    """
    if count == 0:
        return np.empty(0, dtype=np.int64)
    generator = rng.numpy()
    order = generator.permutation(np.sort(indices))
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    chosen = (np.arange(count) * len(order) + generator.integers(len(order))) // count
    return np.sort(order[chosen])


def carve_proxy(
    parts: Sequence[np.ndarray], labels: np.ndarray | None, num_proxy: int, rng: Rng
) -> tuple[np.ndarray, Parts]:
    """Take the server's proxy rows from the clients: the proxy rows, and each client's remaining rows.

    The rows are drawn from all clients together, stratified by class; every client keeps at least one row. Because the
    proxy is taken after the partition, every other row stays with its client.

    Raises
    ------
    DataError
        if ``num_proxy`` is negative or there are not enough rows.
    """
    if num_proxy < 0:
        raise DataError(f"data.proxy = {num_proxy}: must be 0 (the server keeps no rows) or more")
    if num_proxy == 0:
        return np.empty(0, dtype=np.int64), Parts.of(parts)
    # one row of each client, the first of a random order, is never drawn
    spare = np.concatenate(
        [rng.child("spare", client).numpy().permutation(part)[1:] for client, part in enumerate(parts)]
    )
    if num_proxy > len(spare):
        raise DataError(
            f"data.proxy = {num_proxy}: the server can keep at most {len(spare)} rows of {sum(map(len, parts))}, "
            f"because each of {len(parts)} clients keeps one; lower data.proxy or raise data.limit"
        )
    proxy = stratified(spare, labels, num_proxy, rng.child("proxy"))
    return proxy, Parts.of(parts).without(proxy)


def split_client(
    indices: np.ndarray,
    labels: np.ndarray | None,
    rng: Rng,
    *,
    test_fraction: float = 0.0,
    validation_fraction: float = 0.0,
) -> ClientRows:
    """Split the rows of one client into training, validation and test, stratified by class.

    A share is ``round(n * fraction)`` rows, and at least one row if its fraction is above 0. With too few rows,
    training gets one row first, then test, then validation. The test rows do not depend on ``validation_fraction``.

    Parameters
    ----------
    indices
        The client's row numbers.
    labels
        The labels of the whole data; with None the split ignores classes.
    rng
        The client's random stream.
    test_fraction, validation_fraction
        The shares of the rows, in [0, 1); their sum must be below 1.

    Raises
    ------
    DataError
        if a fraction is not in [0, 1), the two leave no rows for training, or the client has no rows.
    """
    _check_fractions(test_fraction, validation_fraction)
    if len(indices) == 0:
        raise DataError("a client has no examples; lower partition.num_clients or raise data.limit")
    num_test = min(_share(len(indices), test_fraction), len(indices) - 1)
    num_validation = min(_share(len(indices), validation_fraction), len(indices) - 1 - num_test)
    test = stratified(indices, labels, num_test, rng.child("test"))
    rest = np.setdiff1d(indices, test)
    validation = stratified(rest, labels, num_validation, rng.child("validation"))
    return ClientRows(np.setdiff1d(rest, validation), validation, test)


def split_clients(
    ids: Sequence[ClientId],
    parts: Sequence[np.ndarray],
    labels: np.ndarray | None,
    rng: Rng,
    *,
    test_fraction: float = 0.0,
    validation_fraction: float = 0.0,
) -> Splits:
    """Apply ``split_client`` to every client, each with its own stream ``rng.child("client", i)``.

    The split of a client therefore depends neither on the other clients nor on where its rows stand in the data.

    Parameters
    ----------
    ids
        The clients' numbers, ascending.
    parts
        The row numbers of each client, ascending.
    labels, rng, test_fraction, validation_fraction
        As in ``split_client``.
    """
    _check_fractions(test_fraction, validation_fraction)
    parts = Parts.of(parts)
    if not test_fraction and not validation_fraction:
        return Splits(ids, parts)
    kinds = []
    for client, part in zip(ids, parts, strict=True):
        shares = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
        own = split_client(part, labels, rng.child("client", client), **shares)
        kinds.append(np.zeros(len(part), dtype=np.int8))
        kinds[-1][np.searchsorted(part, own.test)] = TEST
        kinds[-1][np.searchsorted(part, own.validation)] = VALIDATION
    return Splits(ids, parts, np.concatenate(kinds))


def label_counts(
    parts: Sequence[np.ndarray], labels: np.ndarray | None, classes: Sequence[str]
) -> list[dict[str, int]]:
    """The number of rows by class name, for every client; classes without rows are left out."""
    if labels is None:
        return [{} for _ in parts]
    counts = [np.bincount(labels[part], minlength=len(classes)) for part in parts]
    return [{name: int(count) for name, count in zip(classes, row, strict=True) if count} for row in counts]


def split_digest(shares: Iterable[ClientRows], proxy: np.ndarray) -> str:
    """The sha256 (hex) of the whole split: the server's proxy rows and the three shares of every client."""
    own = (part for share in shares for part in (share.train, share.validation, share.test))
    return digest(chain([proxy], own))


def _check_fractions(test_fraction: float, validation_fraction: float) -> None:
    for key, fraction in (("test_fraction", test_fraction), ("validation_fraction", validation_fraction)):
        if not 0 <= fraction < 1:
            raise DataError(f"partition.{key} = {fraction}: must be at least 0 and below 1")
    if test_fraction + validation_fraction >= 1:
        raise DataError(
            f"partition.test_fraction = {test_fraction} and partition.validation_fraction = {validation_fraction} "
            "leave no rows for training; their sum must be below 1"
        )


def _share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction)) if fraction > 0 else 0
