"""Who holds which rows of one source, when parties of a vertical federation are simulated on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le, MinLen

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.core.settings import Count, Kept, Positive, Share, Text, Unless, Whole, With
from fedquilt.data.holdout import stratified

_DEALT, _FILES = With("id", (None,)), Unless("id", None)

ClassNames = Annotated[tuple[Text, ...], MinLen(1)]


@dataclass(frozen=True)
class Wanted:
    """What one party is to have of its own: the classes of its unaligned rows (None for all), and how many at most."""

    classes: tuple[str, ...] | None = None
    unaligned: int | None = None


@dataclass(frozen=True)
class Dealt:
    """The rows of a source, by who holds them.

    Attributes
    ----------
    aligned : the rows that all parties hold, whose labels the active party knows.
    unaligned : the rows that each party alone holds; disjoint.
    test : the rows that are predicted, of which all parties hold their part.
    noisy : the rows among the unaligned ones whose label is wrong, with the wrong label.
    """

    aligned: np.ndarray
    unaligned: tuple[np.ndarray, ...]
    test: np.ndarray
    noisy: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """The rows of parties: the settings of ``partition.scheme = "vertical"``.

    With ``id`` every party has a file of its own, and the rows that all of them hold are found by a private alignment.
    Without, the rows of one source are dealt to the parties.

    Parameters
    ----------
    aligned : Rows that all parties hold: below 1 their share of the training rows, else their number.
    aligned_classes : Classes of the aligned rows; all if left out.
    shots : Largest number of aligned rows of a class (few-shot); not limited if left out.
    unaligned : Largest number of unaligned rows of each party; all of the rest if left out.
    tail : Long tail of each party's unaligned rows: how frequent its rarest class is, beside its most frequent one.
        Each party has an order of classes of its own.
    unseen : Classes that nobody has in training rows, and that are tested (zero-shot).
    label_noise : Share of the unaligned rows whose label is wrong.
    width : Length of an embedding: every party's encoder gives so many numbers for a row.
    id : Column of the ids by which the rows of the parties' files are aligned.
    alignment : Protocol of the alignment: private set intersection, or a hash under a key that all parties share.
    key_file : File with the shared key, at each party; at least 32 bytes.
    fold_case : Whether ids that differ only in upper and lower case are the same.
    """

    aligned: Annotated[Positive, _DEALT] = 0.1
    aligned_classes: Annotated[ClassNames | None, _DEALT] = None
    shots: Annotated[Count | None, _DEALT] = None
    unaligned: Annotated[Whole | None, _DEALT] = None
    tail: Annotated[Kept, _DEALT] = 1.0
    unseen: Annotated[ClassNames | None, _DEALT] = None
    label_noise: Annotated[Share, _DEALT] = 0.0
    width: Annotated[int, Ge(2), Le(4096)] = 32
    id: Text | None = None
    alignment: Annotated[Literal["psi", "keyed-hash"], _FILES] = "psi"
    key_file: Annotated[Text | None, _FILES, With("alignment", ("keyed-hash",))] = None
    fold_case: Annotated[bool, _FILES] = False


def deal(
    labels: np.ndarray,
    classes: Sequence[str],
    parties: Sequence[Wanted],
    wanted: Dealing,
    rng: Rng,
    test_fraction: float,
) -> Dealt:
    """Deal the rows: test rows first, then aligned ones, then the rest to the parties.

    Parameters
    ----------
    labels, classes
        The class number of each row, (n,), and the classes' names.
    parties
        What each party has, in their order.
    wanted
        How rows are dealt.
    rng
        The random stream.
    test_fraction
        Share of the rows that are tested; 0 where test rows are another source.

    Raises
    ------
    DataError
        if a class is not in the data, or nobody has any row of a class that is not to be unseen.
    """
    every = np.arange(len(labels))
    test = stratified(every, labels, round(test_fraction * len(every)), rng.child("test"))
    rest = np.setdiff1d(every, test)
    rest = rest[~np.isin(labels[rest], _numbers(wanted.unseen or (), classes, "partition.unseen"))]
    aligned = _aligned(rest, labels, classes, wanted, rng.child("aligned"))
    shares = np.array_split(rng.child("parties").numpy().permutation(np.setdiff1d(rest, aligned)), len(parties))
    unaligned = []
    for number, (party, share) in enumerate(zip(parties, shares, strict=True)):
        own = _of_classes(share, labels, classes, party.classes, f"parties[{number}].classes")
        own = _tailed(own, labels, wanted.tail, rng.child("tail", number))
        most = wanted.unaligned if party.unaligned is None else party.unaligned
        unaligned.append(np.sort(own[:most]))
    noisy = _noisy(unaligned, labels, len(classes), wanted.label_noise, rng.child("noise"))
    return Dealt(aligned, tuple(unaligned), test, noisy)


def complete(dealt: Dealt) -> Dealt:
    """The same rows with all of them aligned, as one place would have them that sees all columns."""
    rows = np.sort(np.concatenate([dealt.aligned, *dealt.unaligned]))
    nothing = np.empty(0, dtype=np.int64)
    return Dealt(rows, tuple(nothing for _ in dealt.unaligned), dealt.test)


def _aligned(rest: np.ndarray, labels: np.ndarray, classes: Sequence[str], wanted: Dealing, rng: Rng) -> np.ndarray:
    """The aligned rows, stratified by class."""
    among = _of_classes(rest, labels, classes, wanted.aligned_classes, "partition.aligned_classes")
    count = round(wanted.aligned * len(rest)) if wanted.aligned < 1 else int(wanted.aligned)
    if not 1 <= count <= len(among):
        raise DataError(
            f"partition.aligned = {wanted.aligned:g}: makes {count} aligned rows of {len(among)} training rows of "
            "these classes; take at least 1 and no more than there are"
        )
    chosen = stratified(among, labels, count, rng)
    if wanted.shots is None:
        return chosen
    few = [chosen[labels[chosen] == number][: wanted.shots] for number in np.unique(labels[chosen])]
    return np.sort(np.concatenate(few))


def _of_classes(
    rows: np.ndarray, labels: np.ndarray, classes: Sequence[str], names: Sequence[str] | None, key: str
) -> np.ndarray:
    return rows if names is None else rows[np.isin(labels[rows], _numbers(names, classes, key))]


def _numbers(names: Sequence[str], classes: Sequence[str], key: str) -> list[int]:
    """The numbers of classes by name."""
    missing = [name for name in names if name not in classes]
    if missing:
        raise DataError(f"{key}: the data has no class '{missing[0]}'; it has {', '.join(classes)}")
    return [classes.index(name) for name in names]


def _tailed(rows: np.ndarray, labels: np.ndarray, tail: float, rng: Rng) -> np.ndarray:
    """The rows with classes thinned out: the last of a random order of classes to ``tail`` of its rows."""
    found = np.unique(labels[rows])
    if tail == 1.0 or len(found) < 2:
        return rows
    order = rng.child("order").numpy().permutation(found)
    kept = np.zeros(len(rows), dtype=bool)
    for place, number in enumerate(order):
        own = np.flatnonzero(labels[rows] == number)
        kept[own[: max(1, round(len(own) * tail ** (place / (len(order) - 1))))]] = True
    return rows[kept]


def _noisy(
    unaligned: Sequence[np.ndarray], labels: np.ndarray, num_classes: int, share: float, rng: Rng
) -> dict[int, int]:
    """Another class for this share of all unaligned rows, by row."""
    rows = np.concatenate([*unaligned]) if unaligned else np.empty(0, dtype=np.int64)
    draws = rng.numpy()
    chosen = draws.permutation(rows)[: round(share * len(rows))]
    moved = draws.integers(1, max(2, num_classes), len(chosen))
    return {int(row): int((labels[row] + by) % num_classes) for row, by in zip(chosen, moved, strict=True)}
