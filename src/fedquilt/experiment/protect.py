"""What a config says on defence and privacy, joined to a method and its rounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedquilt.aggregate.robust import aggregate_rule
from fedquilt.config.schema import Config
from fedquilt.core.checks import Limits, reply_check
from fedquilt.core.errors import ConfigError
from fedquilt.core.loop import Check
from fedquilt.core.method import Method
from fedquilt.core.types import Aggregate, ClientId, Profile
from fedquilt.privacy.account import accountant, gaussian_epsilon, sampled_epsilon
from fedquilt.privacy.noise import with_central_dp, with_local_dp


def refuse_contradictions(config: Config, settings: Mapping[str, Any]) -> None:
    """Nothing, if the privacy that the config asks for can be had with the rest of it.

    ``settings`` are the method's arguments, defaults and all.

    Raises
    ------
    ConfigError
        with every contradiction; or if the accountant is not installed.
    """
    mode = config.privacy.mode
    if mode == "none":
        return
    accountant()
    here, problems = f"privacy.mode = '{mode}'", []
    if settings.get("weighting") == "examples":
        problems.append(
            f"{here}: with method.weighting = 'examples' what one client can change has no bound that is known "
            "beforehand; set method.weighting = 'uniform'"
        )
    if settings.get("scores_from") == "clients":
        problems.append(
            f"{here}: with method.scores_from = 'clients' scores of the clients' rows would leave them without noise; "
            "set method.scores_from = 'server' (with data.proxy)"
        )
    if config.evaluation.clients == "received":
        problems.append(
            f"{here}: with evaluation.clients = 'received' scores on the clients' own rows would leave them without "
            "noise; set evaluation.clients = false"
        )
    if mode == "central" and config.aggregation.rule != "mean":
        problems.append(
            f"{here}: aggregation.rule = '{config.aggregation.rule}' has no known bound on what one client can change; "
            "set aggregation.rule = 'mean' (privacy.clip_norm clips already), or privacy.mode = 'local'"
        )
    if mode == "central" and config.defence.max_update_norm is not None:
        problems.append(
            f"{here}: dropping replies by defence.max_update_norm would show which clients' updates are long; leave it "
            "out (privacy.clip_norm bounds every update already)"
        )
    if problems:
        raise ConfigError(problems)


def rule_of(config: Config) -> Aggregate:
    """The rule by which layered methods aggregate."""
    wanted = config.aggregation
    return aggregate_rule(wanted.rule, trim_share=wanted.trim_share, clip_norm=wanted.clip_norm)


def protected(config: Config, method: Method) -> Method:
    """The method with the clipping and the noise that the config asks for."""
    wanted = config.privacy
    if wanted.mode == "none":
        return method
    wrapper = with_central_dp if wanted.mode == "central" else with_local_dp
    return wrapper(
        method, clip_norm=wanted.clip_norm, noise_multiplier=wanted.noise_multiplier, test_key=wanted.test_key
    )


def check_of(config: Config, profiles: Sequence[Profile]) -> Check:
    """What every reply is held to."""
    return reply_check(profiles, Limits(config.defence.max_update_norm, config.defence.max_reply_bytes))


def spending(
    config: Config, cohorts: Callable[[int], Sequence[Profile]], num_exchanges: int
) -> Callable[[int], dict[str, Any] | None]:
    """``spent(t)``: what rounds 0 to t have cost any one client, for the record; None without privacy.

    ``epsilon`` is at ``delta``, None if there is no bound. In mode ``central`` it counts on nobody learning who took
    part in which round; ``epsilon_known_cohorts`` does not, and is that of the client that took part most often. In
    mode ``local`` the server knows who replied, and both are the same. ``releases`` is how many noisy sums (central) or
    noisy replies of this client (local) there were at most.
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
        releases, epsilon = own, known
        if wanted.mode == "central":
            releases, clients = num_exchanges * (number + 1), config.partition.num_clients
            sampled = sampled_epsilon(wanted.noise_multiplier, config.cohort, clients, releases, wanted.delta)
            epsilon = min(known, sampled)  # both hold
        return {
            "mode": wanted.mode,
            "epsilon": _or_none(epsilon),
            "epsilon_known_cohorts": _or_none(known),
            "delta": wanted.delta,
            "releases": releases,
            "test_key": wanted.test_key is not None,
        }

    return spent


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
