"""Partitioning the rows of a data set over clients.

Every scheme assigns each row to exactly one client, and at least one row to every client. The result depends only on
the labels, the settings and the random stream.
"""

from __future__ import annotations

import hashlib
import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_args

import numpy as np

from fedquilt.core.errors import DataError, suggestion
from fedquilt.core.parties import VERTICAL
from fedquilt.core.rng import Rng
from fedquilt.data.partition_schemes import SCHEMES, RowLabels
from fedquilt.data.parts import Parts


def partition(
    scheme: str,
    labels: np.ndarray | None,
    num_clients: int,
    rng: Rng,
    *,
    groups: np.ndarray | None = None,
    num_examples: int | None = None,
    **settings: Any,
) -> Parts:
    """The row numbers of every client: int64, ascending; together every row exactly once.

    Parameters
    ----------
    scheme
        A key of ``SCHEMES``.
    labels, groups
        The class and the natural client id of every row, (n,); None if the data has none.
    num_clients
        The number of clients, from 1 to n.
    rng
        The random stream.
    num_examples
        The number of rows n, where neither ``labels`` nor ``groups`` says it.
    settings
        The scheme's own settings.

    Raises
    ------
    DataError
        if scheme or settings are unknown or impossible for this data, or a client would have no row.
    """
    problems = settings_problems(scheme, settings)
    if problems:
        raise DataError("\n".join(problems))
    known = next((len(column) for column in (labels, groups) if column is not None), num_examples)
    if known is None:
        raise ValueError("partition needs labels, groups or num_examples to know how many rows there are")
    if num_clients < 1:
        raise DataError(f"partition.num_clients = {num_clients}: at least 1 client is needed")
    if num_clients > known:
        raise DataError(
            f"partition.num_clients = {num_clients}: the data has {known} examples, fewer than clients; "
            "lower partition.num_clients or raise data.limit"
        )
    parts = Parts.of_owners(
        SCHEMES[scheme](RowLabels(known, labels, groups), num_clients, rng, **settings), num_clients
    )
    for client in np.flatnonzero(parts.sizes == 0):
        raise DataError(
            f"partition.scheme = '{scheme}': client {client} of {num_clients} has no examples; "
            f"{_REMEDIES.get(scheme, 'lower partition.num_clients')}"
        )
    return parts


def settings_problems(scheme: str, settings: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the scheme and its settings before any data is read; empty if nothing is."""
    if scheme not in SCHEMES:
        names = [*SCHEMES, VERTICAL]
        hint = suggestion(scheme, names)
        return [f"partition.scheme = '{scheme}': no such scheme{hint}; allowed: {', '.join(names)}"]
    allowed = {
        name: parameter
        for name, parameter in inspect.signature(SCHEMES[scheme], eval_str=True).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    problems = [
        f"partition.{name}: scheme '{scheme}' has no such setting{suggestion(name, list(allowed))}; "
        f"allowed: {', '.join(allowed) or 'none'}"
        for name in settings
        if name not in allowed
    ]
    for name, parameter in allowed.items():
        bound = _bound(parameter.annotation)
        if name not in settings:
            if parameter.default is parameter.empty:
                problems.append(f"partition.{name}: scheme '{scheme}' needs it; set it to {bound.words}")
        elif not bound.holds(settings[name]):
            problems.append(f"partition.{name} = {reprlib.repr(settings[name])}: must be {bound.words}")
    return problems


def digest(parts: Iterable[np.ndarray]) -> str:
    """The sha256 (hex) of a split: the same if and only if every part holds the same row numbers in the same order."""
    hasher = hashlib.sha256()
    for part in parts:
        rows = np.ascontiguousarray(part, dtype="<i8")
        hasher.update(len(rows).to_bytes(8, "little"))
        hasher.update(rows.tobytes())
    return hasher.hexdigest()


class _Bound(NamedTuple):
    words: str
    holds: Callable[[Any], bool]


def _bound(kind: Any) -> _Bound:
    """What a setting of this type, a number between two ends, must be."""
    number, low, high = get_args(kind)
    if number is int:
        return _Bound(
            f"a whole number, {low.ge} or more, at most {high.le:,}",
            lambda value: isinstance(value, int) and not isinstance(value, bool) and low.ge <= value <= high.le,
        )
    return _Bound(
        f"a number above {low.gt} and at most {high.le:,}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low.gt < value <= high.le,
    )


_REMEDIES = {
    "dirichlet": "set partition.min_size to 1 or more, raise partition.alpha, or lower partition.num_clients",
    "pathological": "lower partition.num_clients, or raise partition.classes_per_client or data.limit",
    "pathological-dirichlet": "raise partition.floor, partition.classes_per_client or data.limit, or lower "
    "partition.num_clients",
}
