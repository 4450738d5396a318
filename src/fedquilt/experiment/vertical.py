"""Building a vertical federation: parties with other columns of the same rows, and the active one as the server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import torch

from fedquilt.client.client import Client
from fedquilt.config.arguments import arguments
from fedquilt.config.data import idle_keys
from fedquilt.config.groups import Part, party_parts
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.parties import VERTICAL
from fedquilt.core.rng import Rng
from fedquilt.core.server import SERVER
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import Budget, ClientId, Profile
from fedquilt.core.vertical import ALIGNED, TEST, Vertical
from fedquilt.data.cells import Cells
from fedquilt.data.table import Columns, Table, take
from fedquilt.data.tabular import fit
from fedquilt.data.vertical.deal import Dealing, Wanted, complete, deal
from fedquilt.data.vertical.views import seen_of
from fedquilt.experiment.built import Experiment
from fedquilt.experiment.compatibility import refuse_contradictions
from fedquilt.experiment.data import read
from fedquilt.experiment.data_of_groups import naming_groups
from fedquilt.experiment.groups import NO_ROWS, BuiltGroup, Work, federated, host_of, work_of
from fedquilt.experiment.inputs_record import announced_record
from fedquilt.experiment.method import Chosen, chosen, wrapped
from fedquilt.experiment.models import Form, architectures, device_of, kind_of, load_all
from fedquilt.experiment.round_due import is_due
from fedquilt.experiment.trial_pass import try_out
from fedquilt.experiment.vertical_files import ELSEWHERE, files_of, halves, key_of
from fedquilt.experiment.vertical_rows import UNKNOWN, Held, Holding, Reader, Rows, refuse_other_rows, vertical_record
from fedquilt.models.loaded import Loaded
from fedquilt.vertical.alignment.wrapper import with_alignment


def dealing_of(config: Config) -> Dealing:
    """How rows are dealt, from the settings of ``partition.scheme = "vertical"``.

    Raises
    ------
    ConfigError
        with every wrong setting.
    """
    return Dealing(**arguments(Dealing, config.partition.settings, prefix="partition"))


def built_vertical(
    config: Config,
    here: Collection[ClientId] | None = None,
    *,
    on_site: bool = False,
    planned: bool = False,
    reader: Reader = read,
) -> Experiment:
    """The experiment of a vertical federation.

    Parameters
    ----------
    config
        The run file.
    here
        The passive parties whose files are in this process, where each has one of its own; None for all.
    on_site
        Whether it is built by a passive party: the active party's model has shapes only, and labels are not kept.
    planned
        Whether shapes are all that is wanted.
    reader
        Reads a source; another one may keep what it has read.
    """
    method, parts, dealing = chosen(config), party_parts(config), dealing_of(config)
    refuse_contradictions(config, parts[:-1], method)
    device_of(config.device)
    rng = Rng(config.seed)
    if dealing.id is not None:
        if method.traits.complete:
            raise ConfigError(
                f"partition.id = '{dealing.id}': method.name = '{method.name}' needs all columns in one place, and "
                "the parties' files stay apart; leave partition.id out to simulate it"
            )
        files = files_of(config, parts, dealing, here, on_site=on_site)
        return assembled(config, method, parts, dealing, files, rng, on_site=on_site, planned=planned)
    rows = rows_of(config, parts, dealing, rng, together=method.traits.complete, reader=reader)
    holdings = [
        rows.holding(number, labelled=part.party is not None and part.party.labelled)
        for number, part in enumerate(parts)
    ]
    labels = torch.from_numpy(rows.labels[rows.dealt.aligned])
    held = Held(holdings, rows.classes, labels, torch.from_numpy(rows.test_labels), dealt=rows)
    return assembled(config, method, parts, dealing, held, rng, on_site=on_site, planned=planned)


def rows_of(
    config: Config,
    parts: Sequence[Part],
    dealing: Dealing,
    rng: Rng,
    *,
    together: bool = False,
    reader: Reader = read,
) -> Rows:
    """Read the source as each party sees it, and deal its rows.

    Parameters
    ----------
    config, parts
        The run file and its parties.
    dealing, rng
        How rows are dealt, and the random stream of the run.
    together
        Whether all rows are aligned, for a method that sees all columns.
    reader
        Reads a source.

    Raises
    ------
    FedquiltError
        ConfigError or DataError.
    """
    held: dict[str, tuple[Table | None, Table | None]] = {}
    tables, tests = [], []
    for part in parts:
        with naming_groups(part):
            if problems := idle_keys(config.data, {part.config.model.task}, VERTICAL):
                raise ConfigError(problems)
            if not TASKS[part.config.model.task].has_classes:
                raise ConfigError(
                    f"model.task = '{part.config.model.task}': a party's encoder reads rows of a classification task"
                )
            key = f"{part.config.data!r} {TASKS[part.config.model.task].reads}"
            if key not in held:
                held[key] = reader(part.config, rng)
            table, test = held[key]
            assert table is not None, "the rows of simulated parties are of one source"
            tables.append(seen_by(part, table))
            tests += [] if test is None else [seen_by(part, test)]
    first = next(iter(held.values()))[0]
    assert first is not None
    refuse_other_rows(tables)
    assert first.labels is not None, "tables of a classification task have labels"
    labels = first.labels.numpy()
    own = [Wanted(part.party.classes, part.party.unaligned) for part in parts if part.party is not None]
    fraction = 0.0 if tests else config.partition.test_fraction
    dealt = deal(labels, first.classes, own, dealing, rng.child("partition"), fraction)
    dealt = complete(dealt) if together else dealt
    known = tests[0].labels if tests else None
    test_labels = labels[dealt.test] if known is None else known.numpy()
    if not len(test_labels):
        raise DataError("partition.test_fraction = 0: nothing is predicted; set it above 0, or name data.test")
    return Rows(tuple(tables), tuple(tests) or None, labels, first.classes, test_labels, dealt)


def seen_by(part: Part, table: Table) -> Table:
    """What a party sees of the rows."""
    party = part.party
    assert party is not None, "the part is of a vertical federation"
    return seen_of(table, party.view, party.columns)


def form_of_party(part: Part, outputs: tuple[str, ...], holding: Holding) -> Form:
    """What of the data the form of a party's encoder depends on; it fits its columns on its own rows alone."""
    reads, data = TASKS[part.config.model.task].reads, part.config.data
    if holding.table is None:
        return Form(outputs, ELSEWHERE if reads == "table" else None)
    cells = holding.table.inputs
    if not isinstance(cells, Cells):
        return Form(outputs)
    ranges = {name: span for name, span in data.ranges.items() if name in cells.names}
    categories = {name: values for name, values in data.categories.items() if name in cells.names}
    return Form(outputs, fit(cells, holding.known, ranges=ranges, categories=categories))


def assembled(
    config: Config,
    method: Chosen,
    parts: Sequence[Part],
    dealing: Dealing,
    held: Held,
    rng: Rng,
    *,
    on_site: bool,
    planned: bool,
) -> Experiment:
    """Join models, parties, federation and method to an experiment.

    Parameters
    ----------
    config, method, parts
        The run file, its method and its parties, the active one last.
    dealing, held, rng
        How rows were dealt or are aligned, the rows, and the random stream of the run.
    on_site, planned
        Whether it is built by a passive party, and whether shapes are all that is wanted.
    """
    outputs = tuple(f"embedding {number}" for number in range(dealing.width))
    pairs = list(zip(parts, held.holdings, strict=True))
    forms = {part.place: form_of_party(part, outputs, holding) for part, holding in pairs}
    real = (
        []
        if planned
        else [part.place for part, own in pairs if own.table is not None and not (on_site and part.is_server)]
    )
    if dealing.id is None:
        loaded = load_all(parts, forms, rng, meta=planned, real=real)
        names = architectures(parts, [kind_of(part, forms[part.place]) for part in parts], loaded)
    else:  # nobody knows whether files elsewhere make equal encoders
        loaded = tuple(load_all([part], forms, rng, meta=planned, real=real)[0] for part in parts)
        names = tuple(f"{model.architecture}:{part.label}" for part, model in zip(parts, loaded, strict=True))
    depths = {name: model.blocks.num_layers for name, model in zip(names, loaded, strict=True)}
    works: dict[str, Work] = {}
    for part, name, model in zip(parts, names, loaded, strict=True):
        if name not in works:
            meta = next(model.model.parameters()).is_meta
            device = torch.device("meta") if meta else device_of(config.device)
            with naming_groups(part):
                works[name] = work_of(part.config, model, host_of(part.config, model, name, depths), device, rng)
    key = key_of(dealing)
    made = [_party(part, works[name], holding, key) for (part, holding), name in zip(pairs, names, strict=True)]
    groups, (owner, active) = tuple(group for group, _ in made[:-1]), made[-1]
    clients = {
        client.id: client for (_, client), own in zip(made[:-1], held.holdings, strict=False) if own.table is not None
    }
    profiles = tuple(client.profile for _, client in made[:-1])
    vertical = Vertical(
        active=active,
        layout=owner.layout,
        initial=owner.put.start,
        classes=held.classes,
        width=dealing.width,
        parties=tuple(part.label for part in parts),
        labels=torch.zeros_like(held.labels) if on_site else held.labels,
        test_labels=torch.zeros(0, dtype=torch.long) if on_site else held.test_labels,
        due=partial(is_due, config),
        halves=None if dealing.id is None else partial(halves, config.partition.test_fraction, rng.child("test rows")),
    )
    passive = {name: works[name] for name in names[:-1]}
    federation = replace(federated(config, profiles, passive, groups), vertical=vertical)
    make_method = partial(wrapped, config, method, tuple(parts[:-1]), names[:-1])
    if dealing.id is not None:
        make_method = partial(_aligning, make_method, dealing.alignment, None if on_site else active)
    record = {} if held.dealt is None else vertical_record(held.dealt, profiles, groups, parts[-1].label)
    if held.dealt is None and len(clients) == len(profiles):
        record = announced_record(profiles)
    traits = method.traits
    return Experiment(
        config, federation, make_method, make_method(federation), traits, clients, groups, owner, record
    ).modelled()


def _aligning(make: Callable[[Federation], Method], kind: str, active: Client | None, federation: Federation) -> Method:
    """The method whose parties first align the rows of their files."""
    return with_alignment(make(federation), kind, active)


def _party(part: Part, work: Work, holding: Holding, key: bytes) -> tuple[BuiltGroup, Client]:
    """A party as a group of one, and its worker; ``key`` is the one that all parties share."""
    config, model = part.config, work.loaded
    budget = Budget(work.bench.layout.num_layers)
    count, architecture = len(holding.known), work.bench.layout.architecture
    profile = Profile(part.first, count, architecture, budget, config.model.task, part.label)
    if part.is_server:
        profile = replace(profile, id=SERVER)
    client = Client(profile, work.bench, work.first, config.training, config.rounds, NO_ROWS)
    client = replace(client, batch_size=config.evaluation.batch_size, ids=holding.ids, id_key=key)
    if work.bench.device.type == "meta" or holding.table is None:
        train, aligned, test = (
            {"labels": torch.zeros(len(own), dtype=torch.long)} for own in (holding.own, holding.aligned, holding.test)
        )
    else:
        columns = encoded(model, holding.table)
        tested = columns if holding.tested is None else encoded(model, holding.tested)
        train = take(columns, holding.own) | {"labels": torch.tensor(holding.labels[holding.own])}
        aligned, test = take(columns, holding.aligned), take(tested, holding.test)
        if holding.ids:  # which rows are common is not known yet, and those that are not keep their labels
            aligned = {**aligned, "labels": torch.from_numpy(holding.labels)}
        try_out(work.bench, columns, config.model.name)
    client = replace(client, train=train, splits={ALIGNED: aligned, TEST: test})
    beside = client
    if not part.is_server:
        beside = replace(client, profile=replace(profile, id=SERVER), train=NO_ROWS, splits={})
    ids = range(part.first, part.first + (not part.is_server))
    group = BuiltGroup(part.label, ids, config, profile.architecture, model, work.put, work.bench, beside)
    return group, client


def encoded(loaded: Loaded, table: Table) -> Columns:
    """The rows as the encoder reads them, without labels: those are no outputs of the encoder."""
    nothing = torch.zeros(len(table), dtype=torch.long)
    columns = loaded.encode(replace(table, labels=nothing, classes=loaded.outputs.classes))
    return {**columns, "labels": torch.full((len(table),), UNKNOWN)}
