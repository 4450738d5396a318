"""What a config says on defence and privacy, joined to a method and its rounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from fedquilt.aggregate.lowrank.rules import RULES, Rule
from fedquilt.aggregate.robust import aggregate_rule, apart
from fedquilt.config.schema import Config
from fedquilt.core.bounds import Bounds
from fedquilt.core.checks import Check, Limits, reply_check
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng, secret
from fedquilt.core.types import Aggregate, ClientId, Federation, Profile
from fedquilt.experiment.data import SITES
from fedquilt.methods import ACROSS
from fedquilt.privacy.account import accountant, gaussian_epsilon, sampled_epsilon
from fedquilt.privacy.noise import with_central_dp, with_local_dp

SITES_SHARE = 0.5
"""The largest share of the weights that a site has by default: never more than all others together."""

_OWN = {"flexlora": "split", "hetlora": "normalize", "fedex-lora": "residual_rank", "lora-fair": "strength"}
"""Rules of the low-rank family, and the key of [aggregation] that is theirs."""

_APART = {
    "ffa-lora": "B alone is trained",
    "rolora": "one factor is trained in each round",
    "fedsa-lora": "B stays with the clients",
    "local-only": "nothing is sent",
}
"""Methods whose clients do not send both factors together, and why."""

_FORGETFUL = frozenset({"fed-hello", "fedit", "fedra", "exclusive", "straggler", "full", "ffa-lora", "rolora"})
"""Methods whose clients remember nothing from one round to the next, if the head is not theirs."""


def refuse_contradictions(config: Config, settings: Mapping[str, Any]) -> None:
    """Nothing, if the rule and the privacy that the config asks for can be had with the rest of it.

    ``settings`` are the method's arguments, defaults and all.

    Raises
    ------
    ConfigError
        with every contradiction; or if the accountant is not installed.
    """
    if config.privacy.mode != "none":
        accountant()
    if problems := [*_odd_rule(config, settings), *_odd_privacy(config, settings)]:
        raise ConfigError(problems)


def refuse_across(config: Config, groups: Sequence[Any]) -> None:
    """Nothing, if what the config asks for can be had with these groups, which have ``architecture`` and ``config``.

    Raises
    ------
    ConfigError
        with everything that cannot.
    """
    problems = []
    if len({group.architecture for group in groups}) > 1:
        if config.privacy.mode == "central":
            problems.append(
                "privacy.mode = 'central': with groups of unlike architecture there is no one sum of all clients to "
                "put noise on; set privacy.mode = 'local', or let all groups have one model, head and adapter"
            )
        if config.method.name in ACROSS and len({group.config.head.policy for group in groups}) > 1:
            problems.append(
                f"method.name = '{config.method.name}': is one method for all groups, and so is head.policy; set it "
                "in [head] and leave it out of the groups"
            )
    if problems:
        raise ConfigError(problems)


def _odd_rule(config: Config, settings: Mapping[str, Any]) -> list[str]:
    """What does not go with the rule by which adapters are combined, the method's own or the config's."""
    name, given, problems = config.method.name, config.aggregation.rule, []
    if name in RULES and given != "mean":
        problems.append(
            f"aggregation.rule = '{given}': method.name = '{name}' is a rule of its own; leave aggregation.rule out, "
            "or set method.name = 'fedit'"
        )
    if name in _APART and given in RULES:
        problems.append(
            f"aggregation.rule = '{given}': combines both factors of a client, and with method.name = '{name}' "
            f"{_APART[name]}; leave aggregation.rule out, or set method.name = 'fedit'"
        )
    for rule, key in _OWN.items():
        value = getattr(config.aggregation, key)
        if rule != given and value != type(config.aggregation).model_fields[key].default:
            instead = f"set method.{key}" if rule == name else "leave it out"
            problems.append(f"aggregation.{key} = {value!r}: is of aggregation.rule = '{rule}' alone; {instead}")
    if name == "h2tune" and given != "mean":
        problems.append(
            f"aggregation.rule = '{given}': 'h2tune' merges its bank entry by entry, by who has the entry; leave "
            "aggregation.rule out"
        )
    rule = name if name in RULES else given
    exact = settings.get("residual_rank", config.aggregation.residual_rank) != 0
    if (rule == "flora" or (rule == "fedex-lora" and exact)) and config.network.dtype != "float32":
        problems.append(
            f"network.dtype = '{config.network.dtype}': '{rule}' changes the base of all clients, and a rounded change "
            "would make theirs another than the server's; set network.dtype = 'float32'"
        )
    if rule == "flora" and config.defence.max_update_norm is not None:
        problems.append(
            "defence.max_update_norm: with 'flora' clients begin with adapters of their own, which the server cannot "
            "subtract; leave it out, or take 'fedex-lora'"
        )
    return problems


def _odd_privacy(config: Config, settings: Mapping[str, Any]) -> list[str]:
    mode, problems = config.privacy.mode, []
    if mode != "local" and config.privacy.client_epsilon is not None:
        problems.append(
            f"privacy.client_epsilon = {config.privacy.client_epsilon:g}: is of privacy.mode = 'local', where clients "
            "count what they give away; leave it out"
        )
    if mode == "none":
        return problems
    here = f"privacy.mode = '{mode}'"
    if mode == "central" and config.method.name in RULES:
        problems.append(
            f"{here}: method.name = '{config.method.name}' takes products of what each client sent, and not their sum, "
            "so that noise on the sum says nothing of it; take 'ffa-lora' or 'fedit', or privacy.mode = 'local'"
        )
    if mode == "local" and "flora" in (config.method.name, config.aggregation.rule):
        problems.append(
            f"{here}: with 'flora' clients begin with adapters of their own, so that there is no update to clip; take "
            "'fedex-lora' or 'ffa-lora'"
        )
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
    if mode == "central" and config.method.name == "h2tune":
        problems.append(
            f"{here}: with 'h2tune' clients of unlike rank send unlike parts of the bank, of which there is no one sum "
            "to put noise on; set privacy.mode = 'local'"
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
    default = type(config.defence).model_fields["max_norm_ratio"].default
    if mode == "central" and config.defence.max_norm_ratio not in (default, "off"):
        problems.append(
            f"{here}: a bound that depends on the other clients' updates, defence.max_norm_ratio = "
            f"{config.defence.max_norm_ratio}, would show how long these are; leave it out (privacy.clip_norm bounds "
            "every update already)"
        )
    return problems


def rule_of(config: Config, buffers: Collection[str] = ()) -> Aggregate:
    """The rule by which layered methods aggregate, tensor by tensor; ``buffers`` are those that hold statistics."""
    wanted = config.aggregation
    rule = aggregate_rule(
        "mean" if wanted.rule in RULES else wanted.rule, trim_share=wanted.trim_share, clip_norm=wanted.clip_norm
    )
    return apart(rule, buffers) if wanted.rule == "clipped-mean" else rule


def family_of(config: Config) -> Rule | None:
    """The rule by which layered methods combine adapters, None if it is that of all tensors."""
    wanted = config.aggregation
    if wanted.rule not in RULES:
        return None
    settings = [getattr(wanted, _OWN[wanted.rule])] if wanted.rule in _OWN else []
    return RULES[wanted.rule](*settings)


def protected(config: Config, method: Method) -> Method:
    """The method with the clipping and the noise that the config asks for.

    Raises
    ------
    ConfigError
        if the method has several exchanges (in mode ``central``), or clients could not answer every round for what they
        may give away (in mode ``local``).
    """
    wanted = config.privacy
    if wanted.mode == "none":
        return method
    wrapper: Callable[..., Method] = with_central_dp
    if wanted.mode == "local":
        wrapper = partial(with_local_dp, epsilon=_of_a_client(config, method), delta=wanted.delta)
    return wrapper(
        method, clip_norm=wanted.clip_norm, noise_multiplier=wanted.noise_multiplier, test_key=wanted.test_key
    )


def _of_a_client(config: Config, method: Method) -> float | None:
    """The epsilon that a client gives away before it refuses: what the file says, or else what all rounds cost."""
    wanted, exchanges = config.privacy, len(method.exchanges)
    if wanted.client_epsilon is None:
        return _or_none(gaussian_epsilon(wanted.noise_multiplier, config.rounds * exchanges, wanted.delta))
    always = config.cohort == config.partition.num_clients
    rounds = config.rounds if always else 1
    cost = gaussian_epsilon(wanted.noise_multiplier, rounds * exchanges, wanted.delta)
    if cost > wanted.client_epsilon * (1 + 1e-9):
        raise ConfigError(
            f"privacy.client_epsilon = {wanted.client_epsilon:g}: {rounds} round{'s' * (rounds > 1)} cost a client "
            f"epsilon {cost:.4g}, so it would refuse before; raise privacy.noise_multiplier "
            f"({wanted.noise_multiplier:g}) or client_epsilon, or take fewer rounds"
        )
    return wanted.client_epsilon


def check_of(config: Config, profiles: Sequence[Profile]) -> Check:
    """What every reply is held to."""
    return reply_check(profiles, Limits(config.defence.max_update_norm, config.defence.max_reply_bytes))


def bounds_of(config: Config) -> Bounds:
    """What every reply is held to among those of its exchange.

    With central privacy what becomes of a client's update must not depend on the others': it is clipped by itself.
    """
    ratio, share = config.defence.max_norm_ratio, config.defence.max_weight_share
    if share is None:
        share = SITES_SHARE if config.partition.scheme == SITES else 1.0
    off = ratio == "off" or config.privacy.mode == "central"
    return Bounds(None if off else float(ratio), share if share < 1 else None)


def cohort_stream(config: Config, key: str | None) -> Rng:
    """The stream that cohorts are drawn from: of a key that the server alone has, if there is one, or the run's seed.

    Clients have the seed, in the run file and in what their orders come from.
    """
    return Rng(config.seed) if key is None else Rng(int(key, 16))


def cohort_key(config: Config) -> str | None:
    """A new key for ``cohort_stream`` where who took part is to be hidden, as hexadecimal; None elsewhere."""
    hidden = config.privacy.mode == "central" and config.privacy.test_key is None
    return f"{secret().integer(128):032x}" if hidden else None


def hides_cohorts(config: Config, federation: Federation, heads: Collection[str], key: str | None) -> bool:
    """Whether the models that a run gives out can leave open who took part in a round; ``heads`` are head policies.

    Not if cohorts can be listed from the seed; nor if which tensors moved, or how much noise they got, tells who
    trained them; nor if a client's update depends, by what it remembers, on the cohorts that it was in before.
    """
    whole = all(
        profile.budget.layers >= federation.layouts[profile.architecture].num_layers
        and profile.budget.rank == federation.profiles[0].budget.rank
        for profile in federation.profiles
    )
    return key is not None and whole and "local" not in heads and config.method.name in _FORGETFUL


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
