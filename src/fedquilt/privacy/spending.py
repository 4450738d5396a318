"""The epsilon that a run has spent, and whether its cohorts can be kept secret."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from fedquilt.config.schema import Config
from fedquilt.core.federation import Federation
from fedquilt.core.rng import Rng, secret
from fedquilt.core.types import ClientId, Profile
from fedquilt.privacy.account import gaussian_epsilon, sampled_epsilon


def cohort_stream(config: Config, key: str | None) -> Rng:
    """Return the random stream that cohorts are drawn from: of the server's secret key if given, else of the seed.

    The seed is no secret: clients know it from the run file and from the random streams of their orders.
    """
    return Rng(config.seed) if key is None else Rng(int(key, 16))


def cohort_key(config: Config) -> str | None:
    """Draw a new key (hexadecimal) for ``cohort_stream`` where cohorts are to be secret; None elsewhere."""
    hidden = config.privacy.mode == "central" and config.privacy.test_key is None
    return f"{secret().integer(128):032x}" if hidden else None


def hides_cohorts(federation: Federation, heads: Collection[str], key: str | None, *, stateless: bool) -> bool:
    """Whether the models that a run publishes do not reveal who took part in a round.

    They do reveal it if cohorts can be derived from the seed; if the set of tensors that changed, or the amount of
    noise on them, shows who trained them; or if a client's update depends, through its memory, on its earlier cohorts.
    ``heads`` are head policies; ``stateless`` says that clients keep no memory between rounds.
    """
    whole = all(
        profile.budget.layers >= federation.layouts[profile.architecture].num_layers
        and profile.budget.rank == federation.profiles[0].budget.rank
        for profile in federation.profiles
    )
    return key is not None and whole and "local" not in heads and stateless


def spending(
    config: Config, cohorts: Callable[[int], Sequence[Profile]], num_exchanges: int, hidden: bool = False
) -> Callable[[int], dict[str, Any] | None]:
    """Return ``spent(t)``: what rounds 0 to t have cost any one client, for the record; None without privacy.

    In the record, ``epsilon`` is at ``delta``, None if infinite. It assumes no secret, and is that of the client that
    took part most often; ``epsilon_known_cohorts`` is the same number. ``epsilon_secret_cohorts``, in mode ``central``
    and if cohorts are ``hidden``, assumes that only the server learns who took part; it also holds against a curious
    client. ``releases`` is the largest number of noisy sums (central) or noisy replies (local) that used one client's
    data.
    """
    wanted = config.privacy
    took_part: Counter[ClientId] = Counter()
    counted = 0

    def spent(number: int) -> dict[str, Any] | None:
        nonlocal counted
        if wanted.mode == "none":
            return None
        for earlier in range(counted, number + 1):
            took_part.update(profile.id for profile in cohorts(earlier))
        counted = max(counted, number + 1)
        own = num_exchanges * max(took_part.values())
        known = gaussian_epsilon(wanted.noise_multiplier, own, wanted.delta)
        sampled = None
        if hidden and wanted.mode == "central":
            # a curious client knows whether it took part itself: to it, cohorts are drawn from one client less
            others, sums = config.partition.num_clients - 1, num_exchanges * (number + 1)
            every = sampled_epsilon(wanted.noise_multiplier, config.cohort, others, sums, wanted.delta)
            sampled = _or_none(min(known, every))
        return {
            "mode": wanted.mode,
            "epsilon": _or_none(known),
            "epsilon_known_cohorts": _or_none(known),
            "epsilon_secret_cohorts": sampled,
            "delta": wanted.delta,
            "releases": own,
            "test_key": wanted.test_key is not None,
        }

    return spent


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
