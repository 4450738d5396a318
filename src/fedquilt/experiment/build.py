"""Building an experiment from a config: clients, federation and method."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from fedquilt.config.groups import Part, endpoint_parts, parts, server_parts
from fedquilt.config.schema import Config
from fedquilt.core.rng import Rng
from fedquilt.core.server import ServerModel
from fedquilt.core.types import Budget, ClientId
from fedquilt.data.table import Table
from fedquilt.experiment.budgets import budgets_of, check_part
from fedquilt.experiment.buffers import refuse_layouts
from fedquilt.experiment.built import Experiment as Experiment
from fedquilt.experiment.compatibility import refuse_contradictions
from fedquilt.experiment.data import AssignedRows, read
from fedquilt.experiment.data_of_groups import DataSource, data_sources, naming_groups
from fedquilt.experiment.first_round import refuse_idle
from fedquilt.experiment.groups import (
    Built,
    BuiltGroup,
    EncodedRows,
    Work,
    built,
    federated,
    host_of,
    work_of,
)
from fedquilt.experiment.inputs_record import record_of
from fedquilt.experiment.method import Chosen, chosen, wrapped
from fedquilt.experiment.models import (
    Form,
    architectures,
    device_of,
    form_here,
    form_of,
    kind_of,
    load_all,
)
from fedquilt.experiment.on_demand import together
from fedquilt.experiment.server import (
    ServerRows,
    endpoint_server,
    planned_rows,
    refuse_unusable,
    server_group,
    server_rows,
    students_of,
)
from fedquilt.experiment.trial_pass import try_blocks
from fedquilt.experiment.vertical import built_vertical
from fedquilt.models.loaded import Loaded


def build(config: Config, here: Collection[ClientId] | None = None, *, on_site: bool = False) -> Experiment:
    """The experiment of a config; data is partitioned and the method checked before the model's weights are loaded.

    If each client has its own data source, ``here`` are the clients whose rows are on this machine: one for a client,
    none for the server, None for all. The profiles of other clients have 0 examples. ``on_site`` leaves the model and
    the rows that the server owns unread: of its model there are only shapes.

    Raises
    ------
    FedquiltError
        ConfigError, DataError or ModelError.
    """
    if config.parties:
        return built_vertical(config, here, on_site=on_site)
    method, groups, owner = chosen(config), parts(config), server_parts(config)
    refuse_contradictions(config, groups, method)
    device_of(config.device)
    rng = Rng(config.seed)
    assigned: list[tuple[DataSource, AssignedRows]] = []
    for source in data_sources(config, groups):
        with naming_groups(*source.parts):
            table, test = tables_of(source, rng, here)
            assigned.append((source, source.assign(table, test, rng, here)))
    forms = {part.place: form_of(part.config, rows.table, rows) for source, rows in assigned for part in source.parts}
    owned = [ServerRows() if on_site else server_rows(part, rng) for part in (*owner, *endpoint_parts(config))]
    if not on_site:
        refuse_unusable(config)
    forms |= {part.place: form_of(part.config, rows.table) for part, rows in zip(owner, owned, strict=False)}
    every = (*groups, *owner)
    shapes = load_all(every, forms, rng, meta=True)
    for part, shape in zip(groups, shapes, strict=False):
        check_part(part, shape)
    without = joined(config, method, every, forms, shapes, rng)  # errors are raised before weights are loaded
    refuse_idle(without.method, without.federation, rng)
    # a site needs only the weights of its own group's model, and the shapes of the others
    served = () if on_site else owner
    real = [
        part.place for part in (*groups, *served) if not here or part.is_server or any(id in part.ids for id in here)
    ]
    weighed = load_all(every, forms, rng, real=real)
    return joined(config, method, every, forms, weighed, rng, assigned, owned=owned)


def tables_of(source: DataSource, rng: Rng, here: Collection[ClientId] | None) -> tuple[Table | None, Table | None]:
    """The rows of a source that are partitioned, and the common test rows."""
    return source.read(read, rng, here)


def shaped(config: Config) -> Experiment:
    """The experiment on the meta device, for a plan: shapes only. The classes are read from the data if it is here."""
    if config.parties:
        return built_vertical(config, planned=True)
    method, groups, owner = chosen(config), parts(config), server_parts(config)
    refuse_contradictions(config, groups, method)
    rng, every = Rng(config.seed), (*groups, *owner)
    forms = {part.place: form_here(part.config) for part in every}
    shapes = load_all(every, forms, rng, meta=True)
    for part, shape in zip(groups, shapes, strict=False):
        check_part(part, shape)
    owned = [planned_rows(part, rng) for part in (*owner, *endpoint_parts(config))]
    return joined(config, method, every, forms, shapes, rng, owned=owned)


def joined(
    config: Config,
    wanted: Chosen,
    parts: Sequence[Part],
    forms: Mapping[int, Form],
    loaded: Sequence[Loaded],
    rng: Rng,
    assigned: Sequence[tuple[DataSource, AssignedRows]] | None = None,
    budgets: Mapping[int, tuple[Budget, ...]] | None = None,
    owned: Sequence[ServerRows] = (),
) -> Experiment:
    """Join models, clients, federation and method to an experiment.

    Parameters
    ----------
    config : the run file.
    wanted : the method that it names.
    parts : its groups, and behind them the server if it owns a model.
    forms : what of the data the form of each group's model depends on, by its number.
    loaded : the model of each group.
    rng : the random stream of the run.
    assigned : the rows of each source; None for an experiment of shapes on the meta device.
    budgets : the budgets of each group's clients; None for those of the run file.
    owned : the rows of the server, if it owns a model and they are here.
    """
    device, shape = device_of(config.device) if assigned else torch.device("meta"), torch.device("meta")
    names = architectures(parts, [kind_of(part, forms[part.place]) for part in parts], loaded)
    sized = {name: model.blocks.num_layers for name, model in zip(names, loaded, strict=True)}
    depths = {name: sized[name] for part, name in zip(parts, names, strict=True) if not part.is_server}
    rows_of = EncodedRows(assigned)
    works: dict[str, Work] = {}
    made: list[Built] = []
    owner: BuiltGroup | None = None
    server: ServerModel | None = None
    for part, name, model in zip(parts, names, loaded, strict=True):
        if name not in works:
            with naming_groups(part):
                weightless = next(model.model.parameters()).is_meta
                where, among = shape if weightless else device, depths if name in depths else {name: sized[name]}
                host = host_of(part.config, model, name, among)
                works[name] = work_of(part.config, model, replace(host, slots=wanted.traits.slots), where, rng)
        if part.is_server:
            here = next(iter(owned), ServerRows())
            with naming_groups(part):
                owner, server = server_group(part, works[name], here, rng, planned=assigned is None)
            continue
        own = budgets_of(part, model.blocks.num_layers) if budgets is None else budgets[part.place]
        made.append(built(part, works[name], own, rows_of, rng))
    if config.server is not None and config.server.endpoint is not None:
        here = next(iter(owned), ServerRows())
        server = endpoint_server(config.server.endpoint, here, config.server.share, asks=assigned is not None)
    groups, clients = tuple(one.group for one in made), together([one.clients for one in made])
    profiles = tuple(chain.from_iterable(one.profiles for one in made))
    clients_works = {name: work for name, work in works.items() if name in depths}
    if server is not None:
        server = replace(server, students=students_of(groups))
    federation = replace(federated(config, profiles, clients_works, groups), server=server)
    refuse_layouts(config, groups)
    make_method = partial(wrapped, config, wanted, tuple(parts)[: len(groups)], names[: len(groups)])
    method = make_method(federation)
    if any(exchange.partial for exchange in method.exchanges):
        for group in groups:
            rows = next((clients[id].train for id in group.ids if id in clients), None)
            if rows is not None and group.bench.device.type != "meta":
                try_blocks(group.bench, rows, group.config.model.name)
    record: dict[str, Any] = {}
    if assigned is not None and len(clients) == len(profiles):
        record = record_of(assigned, groups, profiles)
    return Experiment(config, federation, make_method, method, wanted.traits, clients, groups, owner, record).modelled()
