"""What the rounds of a run have cost in privacy, and whether it can be kept secret who took part in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from fedquilt.config.schema import Config
from fedquilt.core.rng import Rng, secret
from fedquilt.core.types import ClientId, Federation, Profile
from fedquilt.privacy.account import gaussian_epsilon, sampled_epsilon


def cohort_stream(config: Config, key: str | None) -> Rng:
    """The stream that cohorts are drawn from: of a key that the server alone has, if there is one, or the run's seed.

    Clients have the seed, in the run file and in what their orders come from.
    """
    return Rng(config.seed) if key is None else Rng(int(key, 16))


def cohort_key(config: Config) -> str | None:
    """A new key for ``cohort_stream`` where who took part is to be hidden, as hexadecimal; None elsewhere."""
    hidden = config.privacy.mode == "central" and config.privacy.test_key is None
    return f"{secret().integer(128):032x}" if hidden else None


def hides_cohorts(federation: Federation, heads: Collection[str], key: str | None, *, stateless: bool) -> bool:
    """Whether the models that a run gives out can leave open who took part in a round.

    ``heads`` are head policies; ``stateless`` says that the method's clients remember nothing between rounds.

    Not if cohorts can be listed from the seed; nor if which tensors moved, or how much noise they got, tells who
    trained them; nor if a client's update depends, by what it remembers, on the cohorts that it was in before.
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
    """``spent(t)``: what rounds 0 to t have cost any one client, for the record; None without privacy.

    ``epsilon`` is at ``delta``, None if there is no bound. It counts on no secret, and is that of the client that took
    part most often; ``epsilon_known_cohorts`` is the same. ``epsilon_secret_cohorts``, in mode ``central`` and if they
    are ``hidden``, counts on nobody but the server learning who took part, and holds against any one client as well.
    ``releases`` is how many noisy sums (central) or noisy replies of this client (local) its data went into at most.
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
            # a client knows of itself whether it was there: the cohort is then drawn from one client less
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
