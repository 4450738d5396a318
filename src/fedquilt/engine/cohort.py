"""Cohorts: the clients that take part in each round."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedquilt.core.rng import Rng
from fedquilt.core.types import Profile


def uniform_cohorts(profiles: Sequence[Profile], size: int, rng: Rng) -> Callable[[int], tuple[Profile, ...]]:
    """Return ``cohort(t)``, which gives ``size`` distinct clients for round ``t``, drawn uniformly, in client order.

    The draw depends only on the random stream and the round number, so all methods in a comparison get the same
    cohorts.

    Raises
    ------
    ValueError
        if ``size`` is below 1 or above the number of clients.
    """
    if not 1 <= size <= len(profiles):
        raise ValueError(f"a cohort of {size} cannot be drawn from {len(profiles)} clients")

    def cohort(number: int) -> tuple[Profile, ...]:
        chosen = rng.child("cohort", number).numpy().choice(len(profiles), size=size, replace=False)
        return tuple(profiles[index] for index in sorted(chosen))

    return cohort
