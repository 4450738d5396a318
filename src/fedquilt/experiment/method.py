"""The method of a run file: its factory, its settings, and the wrappers that the run file adds."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from fedquilt.adapters.sites import is_shared
from fedquilt.aggregate.alignment.wrapper import with_alignment
from fedquilt.aggregate.axes import rotation
from fedquilt.aggregate.axes_exchange import with_axes
from fedquilt.aggregate.lowrank.rules import RULES
from fedquilt.aggregate.robust import aggregate_rule, apart
from fedquilt.aggregate.server_optimizer import with_server_optimizer
from fedquilt.client.penalty import with_proximal
from fedquilt.config.arguments import arguments
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.core.factors import MAGNITUDE
from fedquilt.core.federation import Aggregate, Federation, Rule
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.wire import with_wire_dtype
from fedquilt.core.wrap import with_local, with_received_scores
from fedquilt.experiment.buffers import buffers_of, kept_by_clients
from fedquilt.experiment.data_of_groups import naming_groups
from fedquilt.methods.across_architectures import mean_of, split, with_shared
from fedquilt.methods.by_architecture import by_architecture
from fedquilt.methods.registry import METHODS, Factory, entry_of, known, traits_of
from fedquilt.methods.traits import Traits
from fedquilt.privacy.account import gaussian_epsilon
from fedquilt.privacy.noise import with_central_dp, with_local_dp
from fedquilt.vertical.disclosure import with_disclosure


class Chosen(NamedTuple):
    """The method that a run file names: factory, all settings, and the traits with these settings."""

    name: str
    factory: Factory
    settings: Mapping[str, Any]
    traits: Traits


def chosen(config: Config) -> Chosen:
    """The method of a config.

    Raises
    ------
    ConfigError
        if there is no such method, or any of its settings is wrong; lists all that are.
    """
    name = known(config.method.name)
    factory, entry, given = METHODS[name], entry_of(name), config.method.settings
    settings = arguments(factory, {**entry.suited.get(config.adapter.kind, {}), **given}, prefix="method")
    if not _has_proxy(config):
        settings |= {key: value for key, value in entry.without_proxy.items() if key not in given}
    return Chosen(name, factory, settings, traits_of(name, settings))


def _has_proxy(config: Config) -> bool:
    """Whether the server holds rows of every source."""
    own = [group.data or config.data for group in config.groups] or [config.data]
    return all(data.proxy for data in own)


def wrapped(
    config: Config, method: Chosen, parts: Sequence[Part], names: Sequence[str], federation: Federation
) -> Method:
    """The method for a federation with all wrappers of the config.

    A method that does not work across architectures runs separately in each. With adapters in common coordinates, their
    cores and head are shared across architectures beside it, unless ``axes.share`` says otherwise.

    Parameters
    ----------
    config : the run file.
    method : the method that it names.
    parts : its groups.
    names : the architecture of each group.
    federation : what the method knows about the federation.
    """
    owners = {name: tuple(part for part, own in zip(parts, names, strict=True) if own == name) for name in names}

    def plain(federation: Federation) -> Method:
        own = [part for name in federation.layouts for part in owners[name]]
        with naming_groups(*own):
            made = changed(config, method.factory(federation, **method.settings), federation, method.settings)
        kept = kept_by_clients(own[0].config, federation.layouts.values())
        return with_local(made, kept) if kept else made

    if method.traits.across and config.axes.share == "all":
        made = plain(federation)
    elif both := _shared(config, method, owners, federation):
        rest, shared = split(federation, both)
        mean = mean_of(shared, method.settings.get("weighting", "examples"))
        made = with_shared(by_architecture(plain, rest), changed(config, mean, shared, method.settings), shared)
    else:
        made = by_architecture(plain, federation)
    made = with_proximal(made, config.training.proximal)
    if config.evaluation.clients == "received":
        made = with_received_scores(made)
    if federation.vertical is not None:
        made = with_disclosure(made, config.disclosure, federation.vertical)
    made = protected(config, made)  # outermost except for rounding, which only processes its output
    if config.network.dtype != "float32":
        # epsilon with secret cohorts requires that updates do not depend on earlier cohorts, as error feedback does
        # rounding a magnitude would rescale a whole row of the frozen base
        layouts = federation.layouts.values()
        exact = buffers_of(layouts) | {name for layout in layouts for name in layout.depth if name.endswith(MAGNITUDE)}
        made = with_wire_dtype(made, config.network.dtype, feedback=config.privacy.mode != "central", exact=exact)
    # public inputs are not rounded, clipped or noised: they say nothing of clients, and all must have the same points
    return _in_common_coordinates(config, made, federation) if federation.public else made


def _in_common_coordinates(config: Config, method: Method, federation: Federation) -> Method:
    """The method whose first exchange finds common coordinates, as [axes] wants them."""
    rank, rng = config.adapter.rank, Rng(config.seed).child("axes", "rotation")
    rotated = config.axes.control == "rotated"
    turned = {name: rotation(rank, rng.child(name)) for name in federation.layouts}
    if rotated:  # what is shared means something else in each by intention, so no agreement is too low
        return with_axes(method, federation, rank, turned=turned.__getitem__)
    return with_axes(method, federation, rank, least=config.axes.min_agreement)


def _shared(
    config: Config, method: Chosen, owners: Mapping[str, Sequence[Part]], federation: Federation
) -> frozenset[str]:
    """The tensors that all architectures share beside a method that runs separately in each; ``owners`` by name."""
    if not federation.public or config.axes.share != "all" or len(federation.layouts) == 1:
        return frozenset()
    if method.traits.across or method.traits.sends == "nothing":
        return frozenset()
    named, kept = set[str](), set[str]()
    for name, layout in federation.layouts.items():
        named.update(filter(is_shared, layout.depth))
        kept |= kept_by_clients(owners[name][0].config, [layout])
    return frozenset(named - kept)


def changed(config: Config, method: Method, federation: Federation, settings: Mapping[str, Any]) -> Method:
    """The method with the alignment and the server optimiser that the config asks for.

    ``settings`` are all arguments of the method, with defaults.
    """
    wanted = config.aggregation
    if not any(layout.depth for layout in federation.layouts.values()):  # nothing beside what is shared
        return method
    if wanted.align != "none":
        layouts = federation.layouts.values()
        adapted = frozenset[str]().union(*(frozenset(one.depth) - one.head - one.buffers for one in layouts))
        method = with_alignment(
            method,
            federation.profiles,
            adapted.__contains__,
            wanted,
            groups=wanted.align_groups,
            weighting=settings.get("weighting", "examples"),
            local_steps=federation.local_steps,
        )
    return with_server_optimizer(method, wanted, apart=buffers_of(federation.layouts.values()))


def protected(config: Config, method: Method) -> Method:
    """The method with the clipping and the noise that the config asks for.

    Raises
    ------
    ConfigError
        if the method has several exchanges (mode ``central``), or the clients' privacy budget does not last for all
        rounds (mode ``local``).
    """
    wanted = config.privacy
    if wanted.mode == "none":
        return method
    wrapper: Callable[..., Method] = with_central_dp
    if wanted.mode == "local":
        wrapper = partial(with_local_dp, epsilon=_client_epsilon(config, method), delta=wanted.delta)
    return wrapper(
        method, clip_norm=wanted.clip_norm, noise_multiplier=wanted.noise_multiplier, test_key=wanted.test_key
    )


def _client_epsilon(config: Config, method: Method) -> float | None:
    """The epsilon at which a client stops to reply: the file's, or else the cost of all rounds."""
    wanted, exchanges = config.privacy, len(method.exchanges)
    if wanted.client_epsilon is None:
        every = gaussian_epsilon(wanted.noise_multiplier, config.rounds * exchanges, wanted.delta)
        return every if math.isfinite(every) else None
    always = config.cohort == config.partition.num_clients
    rounds = config.rounds if always else 1
    cost = gaussian_epsilon(wanted.noise_multiplier, rounds * exchanges, wanted.delta)
    if cost > wanted.client_epsilon * (1 + 1e-9):
        raise ConfigError(
            f"privacy.client_epsilon = {wanted.client_epsilon:g}: {rounds} round{'s' * (rounds > 1)} cost a client "
            f"epsilon {cost:.4g}, so it would stop replying before; raise privacy.noise_multiplier "
            f"({wanted.noise_multiplier:g}) or client_epsilon, or take fewer rounds"
        )
    return wanted.client_epsilon


def tensor_rule(config: Config, buffers: Collection[str] = ()) -> Aggregate:
    """The rule with which layered methods combine each tensor; ``buffers`` are the names of running statistics."""
    wanted = config.aggregation
    rule = aggregate_rule(wanted)
    return apart(rule, buffers) if wanted.rule == "clipped-mean" else rule


def lowrank_rule(config: Config) -> Rule | None:
    """The rule with which layered methods combine pairs of factors; None if ``tensor_rule`` combines them."""
    wanted = config.aggregation
    if wanted.rule not in RULES:
        return None
    return RULES[wanted.rule](**{key: getattr(wanted, key) for key in keys_of(wanted.rule)})


def keys_of(rule: str) -> tuple[str, ...]:
    """The keys of [aggregation] that belong to a low-rank rule: the arguments of its constructor."""
    return tuple(inspect.signature(RULES[rule]).parameters)
