"""From a config to clients, a federation and a method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from fedquilt.client.client import Client
from fedquilt.config.arguments import arguments
from fedquilt.config.groups import Part, parts
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, suggestion
from fedquilt.core.method import Method
from fedquilt.core.rng import Rng
from fedquilt.core.types import Budget, ClientId, Federation, Layout, Profile
from fedquilt.core.wire import with_wire_dtype
from fedquilt.core.wrap import with_local, with_received_scores
from fedquilt.data.table import Table
from fedquilt.experiment.adapter import refuse_adapter
from fedquilt.experiment.buffers import buffers_of, kept_by_clients, refuse_buffers
from fedquilt.experiment.changes import changed, refuse_changes
from fedquilt.experiment.data import Dealt, classes_here, read
from fedquilt.experiment.data_of_groups import Source, sources, told_of
from fedquilt.experiment.groups import (
    BuiltGroup,
    Rows,
    Work,
    budgets_of,
    built,
    check_part,
    federated,
    host_of,
    work_of,
)
from fedquilt.experiment.inputs_record import announced_record, record_of
from fedquilt.experiment.models import (
    Classes,
    architectures,
    classes_of,
    device_of,
    kind_of,
    load_all,
)
from fedquilt.experiment.protect import protected, refuse_across, refuse_contradictions
from fedquilt.experiment.trial_pass import try_blocks
from fedquilt.methods import ACROSS, METHODS
from fedquilt.methods.by_architecture import by_architecture
from fedquilt.models.hf import Loaded


@dataclass(frozen=True)
class Experiment:
    """Everything that a run, a plan or an export needs.

    ``clients`` are those whose rows are here. ``groups`` are the federation's groups, or the one group that it is; what
    a group's clients work with, and the server's own client for them, is there. ``make_method`` makes the method for a
    federation.
    """

    config: Config
    federation: Federation
    make_method: Callable[[Federation], Method]
    method: Method
    clients: dict[ClientId, Client]
    groups: tuple[BuiltGroup, ...]
    partition: dict[str, Any]

    @property
    def only(self) -> BuiltGroup:
        """The one group.

        Raises
        ------
        ValueError
            if the federation has several.
        """
        (group,) = self.groups
        return group

    @property
    def server(self) -> Client:
        """The server's own client, where there is one group; its training rows, if it has any, are the proxy set."""
        return self.only.server

    @property
    def loaded(self) -> Loaded:
        return self.only.loaded

    @property
    def layout(self) -> Layout:
        return self.only.layout

    def group_of(self, client: ClientId) -> BuiltGroup:
        """The group that a client is in."""
        return next(group for group in self.groups if client in group.ids)

    @property
    def rng(self) -> Rng:
        return Rng(self.config.seed)

    def announced(self, examples: Mapping[ClientId, int]) -> Experiment:
        """The experiment when the clients have said how many training rows each has; whoever has not has none."""
        if not examples:
            return self
        profiles = tuple(
            replace(profile, num_examples=examples.get(profile.id, 0)) for profile in self.federation.profiles
        )
        federation = replace(self.federation, profiles=profiles)
        made = replace(self, federation=federation, method=self.make_method(federation))
        return replace(made.modelled(), partition=announced_record(profiles))

    def modelled(self) -> Experiment:
        """The experiment whose clients, and the server's own, make a model of an order as its method does."""
        model = self.method.model
        clients = {id: replace(client, model=model) for id, client in self.clients.items()}
        groups = tuple(replace(group, server=replace(group.server, model=model)) for group in self.groups)
        return replace(self, clients=clients, groups=groups)


def build(config: Config, here: Collection[ClientId] | None = None) -> Experiment:
    """The experiment of a config; data is dealt and the method checked before the model's weights are loaded.

    ``here`` are the clients whose rows are on this machine where each client has a source of its own: one for a client,
    none for the server, all for None. Clients that are not here have profiles without a number of examples.

    Raises
    ------
    FedquiltError
        of the kind that fits: ConfigError, DataError or ModelError.
    """
    method = method_arguments(config)
    device_of(config.device)
    rng, groups = Rng(config.seed), parts(config)
    dealt: list[tuple[Source, Dealt]] = []
    for source in sources(config, groups):
        with told_of(*source.parts):
            table, test = tables_of(source, rng, here)
            dealt.append((source, source.deal(table, test, rng, here)))
    classes = {part.place: classes_of(part, rows.table) for source, rows in dealt for part in source.parts}
    shapes = load_all(groups, classes, rng, meta=True)
    for part, shape in zip(groups, shapes, strict=True):
        check_part(part, shape)
    joined(config, method, groups, classes, shapes, rng)  # what is wrong shows before weights load
    # a site needs the shapes of other groups' models, and the weights of its own
    real = None if not here else [part.place for part in groups if any(id in part.ids for id in here)]
    return joined(config, method, groups, classes, load_all(groups, classes, rng, real=real), rng, dealt)


def tables_of(source: Source, rng: Rng, here: Collection[ClientId] | None) -> tuple[Table | None, Table | None]:
    """The rows of a source that are dealt, and the separate test rows."""
    return source.read(read, rng, here)


def shaped(config: Config) -> Experiment:
    """The experiment on the meta device: shapes only, for a plan. The data, if it is here, tells how many classes."""
    method = method_arguments(config)
    rng, groups = Rng(config.seed), parts(config)
    classes = {part.place: classes_here(part.config) for part in groups}
    shapes = load_all(groups, classes, rng, meta=True)
    for part, shape in zip(groups, shapes, strict=True):
        check_part(part, shape)
    return joined(config, method, groups, classes, shapes, rng)


def method_arguments(config: Config) -> tuple[Callable[..., Method], dict[str, Any]]:
    """The factory of the config's method, and all its settings.

    Raises
    ------
    ConfigError
        if there is no such method, with every setting that is wrong otherwise.
    """
    name = config.method.name
    if name not in METHODS:
        raise ConfigError(
            f"method.name = '{name}': unknown method{suggestion(name, [*METHODS])}; allowed: {', '.join(METHODS)}"
        )
    factory = METHODS[name]
    return factory, arguments(factory, config.method.settings, prefix="method")


def joined(
    config: Config,
    wanted: tuple[Callable[..., Method], dict[str, Any]],
    parts: Sequence[Part],
    classes: Mapping[int, Classes],
    loaded: Sequence[Loaded],
    rng: Rng,
    dealt: Sequence[tuple[Source, Dealt]] | None = None,
    budgets: Mapping[int, tuple[Budget, ...]] | None = None,
) -> Experiment:
    """Models, clients, federation and method put together; without ``dealt`` all is shapes, on the meta device."""
    device, shape = device_of(config.device) if dealt else torch.device("meta"), torch.device("meta")
    names = architectures(parts, [kind_of(part, classes[part.place]) for part in parts], loaded)
    refuse_adapter(config, parts, wanted[1])
    depths = {name: model.blocks.num_layers for name, model in zip(names, loaded, strict=True)}
    rows_of = Rows(dealt)
    works: dict[str, Work] = {}
    groups: list[BuiltGroup] = []
    clients: dict[ClientId, Client] = {}
    profiles: list[Profile] = []
    for part, name, model in zip(parts, names, loaded, strict=True):
        if name not in works:
            with told_of(part):
                weightless = next(model.model.parameters()).is_meta
                where = shape if weightless else device
                works[name] = work_of(part.config, model, host_of(part.config, model, name, depths), where, rng)
        own = budgets_of(part) if budgets is None else budgets[part.place]
        group, members = built(part, works[name], own, rows_of, rng)
        groups.append(group)
        clients |= members
        profiles += [
            members[id].profile if id in members else Profile(id, 0, name, budget, part.config.model.task, part.label)
            for id, budget in zip(part.ids, own, strict=True)
        ]
    federation = federated(config, tuple(profiles), works, groups)
    refuse_contradictions(config, wanted[1])
    refuse_changes(config, wanted[1])
    refuse_across(config, groups)
    refuse_buffers(config, groups)
    make_method = partial(_method, config, wanted, tuple(parts), names)
    method = make_method(federation)
    if any(exchange.partial for exchange in method.exchanges):
        for group in groups:
            rows = next((clients[id].train for id in group.ids if id in clients), None)
            if rows is not None and group.bench.device.type != "meta":
                try_blocks(group.bench, rows, group.config.model.name)
    record: dict[str, Any] = {}
    if dealt is not None and len(clients) == len(profiles):
        record = record_of(dealt, groups, profiles)
    return Experiment(config, federation, make_method, method, clients, tuple(groups), record).modelled()


def _method(
    config: Config,
    wanted: tuple[Callable[..., Method], dict[str, Any]],
    parts: Sequence[Part],
    names: Sequence[str],
    federation: Federation,
) -> Method:
    """The method of the config with all that the config changes of it; apart by architecture, if it shares nothing."""
    factory, settings = wanted
    owners = {name: tuple(part for part, own in zip(parts, names, strict=True) if own == name) for name in names}

    def plain(federation: Federation) -> Method:
        own = [part for name in federation.layouts for part in owners[name]]
        with told_of(*own):
            method = changed(config, factory(federation, **settings), federation, settings)
        kept = kept_by_clients(own[0].config, federation.layouts.values())
        return with_local(method, kept) if kept else method

    method = plain(federation) if config.method.name in ACROSS else by_architecture(plain, federation)
    if config.evaluation.clients == "received":
        method = with_received_scores(method)
    method = protected(config, method)  # outermost but for rounding, which makes something of its output alone
    if config.network.dtype == "float32":
        return method
    # with secret cohorts, epsilon is of clients whose updates do not depend on earlier cohorts
    exact = buffers_of(federation.layouts.values())
    return with_wire_dtype(method, config.network.dtype, feedback=config.privacy.mode != "central", exact=exact)
