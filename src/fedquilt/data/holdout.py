"""Rows kept by the server, and every client's rows for training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.data.partition import digest


@dataclass(frozen=True)
class Shares:
    """One client's row numbers, ascending; no row is in two of the three."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def stratified(indices: np.ndarray, labels: np.ndarray | None, count: int, rng: Rng) -> np.ndarray:
    """``count`` of the row numbers ``indices``, ascending, drawn so that every class keeps its share to within one row.

    Systematic sampling: the rows in random order are sorted by label, and every ``n / count``-th is taken from a random
    start. ``labels`` are those of the whole data; None draws without regard to class.
    """
    if count == 0:
        return np.empty(0, dtype=np.int64)
    generator = rng.numpy()
    order = generator.permutation(np.sort(indices))
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    places = (np.arange(count) * len(order) + generator.integers(len(order))) // count
    return np.sort(order[places])


def carve_proxy(
    parts: Sequence[np.ndarray], labels: np.ndarray | None, num_proxy: int, rng: Rng
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The server's proxy rows, and the clients' rows without them.

    The rows come from all clients together, stratified by class; a client always keeps one row. Taking them out after
    the partition leaves every other row with the client that had it.

    Raises
    ------
    DataError
        if there are not enough rows.
    """
    if num_proxy < 0:
        raise DataError(f"data.proxy = {num_proxy}: must be 0 (the server keeps no rows) or more")
    # the first row that a client happens to hold is as good as any other to be kept
    spare = np.concatenate(
        [rng.child("spare", client).numpy().permutation(part)[1:] for client, part in enumerate(parts)]
    )
    if num_proxy > len(spare):
        raise DataError(
            f"data.proxy = {num_proxy}: the server can keep at most {len(spare)} rows of {sum(map(len, parts))}, "
            "because each of "
            f"{len(parts)} clients keeps one; lower data.proxy or raise data.limit"
        )
    proxy = stratified(spare, labels, num_proxy, rng.child("proxy"))
    return proxy, tuple(np.setdiff1d(part, proxy) for part in parts)


def split_client(
    indices: np.ndarray,
    labels: np.ndarray | None,
    rng: Rng,
    *,
    test_fraction: float = 0.0,
    validation_fraction: float = 0.0,
) -> Shares:
    """One client's rows for training, validation and test, stratified by class.

    A share is ``round(n * fraction)`` rows, at least one where its fraction is above 0; but one row is always kept for
    training, then test comes before validation. The test rows do not depend on ``validation_fraction``.

    Raises
    ------
    DataError
        if a fraction is not in [0, 1) or the two leave nothing for training.
    """
    for key, fraction in (("test_fraction", test_fraction), ("validation_fraction", validation_fraction)):
        if not 0 <= fraction < 1:
            raise DataError(f"partition.{key} = {fraction}: must be at least 0 and below 1")
    if test_fraction + validation_fraction >= 1:
        raise DataError(
            f"partition.test_fraction = {test_fraction} and partition.validation_fraction = {validation_fraction} "
            "leave nothing "
            "for training; their sum must be below 1"
        )
    if len(indices) == 0:
        raise DataError("a client has no examples; lower partition.num_clients or raise data.limit")
    num_test = min(_share(len(indices), test_fraction), len(indices) - 1)
    num_validation = min(_share(len(indices), validation_fraction), len(indices) - 1 - num_test)
    test = stratified(indices, labels, num_test, rng.child("test"))
    rest = np.setdiff1d(indices, test)
    validation = stratified(rest, labels, num_validation, rng.child("validation"))
    return Shares(np.setdiff1d(rest, validation), validation, test)


def split_clients(
    parts: Mapping[int, np.ndarray],
    labels: np.ndarray | None,
    rng: Rng,
    *,
    test_fraction: float = 0.0,
    validation_fraction: float = 0.0,
) -> dict[int, Shares]:
    """``split_client`` for every client, each on its own stream ``rng.child("client", i)``: who else there is, and
    where a client's rows stand among others, changes nothing."""
    return {
        client: split_client(
            part,
            labels,
            rng.child("client", client),
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
        )
        for client, part in parts.items()
    }


def label_counts(
    parts: Sequence[np.ndarray], labels: np.ndarray | None, classes: Sequence[str]
) -> list[dict[str, int]]:
    """For every client the number of its rows by class name; classes it has no row of are left out."""
    if labels is None:
        return [{} for _ in parts]
    counts = [np.bincount(labels[part], minlength=len(classes)) for part in parts]
    return [{name: int(count) for name, count in zip(classes, row, strict=True) if count} for row in counts]


def split_digest(shares: Sequence[Shares], proxy: np.ndarray) -> str:
    """The sha256 (hex) of the whole split: the server's rows and every client's three shares."""
    return digest([proxy, *(part for share in shares for part in (share.train, share.validation, share.test))])


def _share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction)) if fraction > 0 else 0
