"""Building a vertical federation: parties with other columns of the same rows, and the active one as the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from fedquilt.client.client import Client
from fedquilt.config.arguments import arguments
from fedquilt.config.data import idle_keys
from fedquilt.config.groups import Part, party_parts
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, DataError
from fedquilt.core.parties import VERTICAL
from fedquilt.core.rng import Rng
from fedquilt.core.server import SERVER
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import Budget, Profile
from fedquilt.core.vertical import ALIGNED, TEST, Vertical
from fedquilt.data.cells import Cells
from fedquilt.data.table import Columns, Table, take
from fedquilt.data.tabular import fit
from fedquilt.data.vertical.deal import Dealing, Held, complete, deal
from fedquilt.data.vertical.views import seen_of
from fedquilt.experiment.built import Experiment
from fedquilt.experiment.compatibility import refuse_contradictions
from fedquilt.experiment.data import read
from fedquilt.experiment.data_of_groups import naming_groups
from fedquilt.experiment.groups import NO_ROWS, BuiltGroup, Work, federated, host_of, work_of
from fedquilt.experiment.method import Chosen, chosen, wrapped
from fedquilt.experiment.models import Form, architectures, device_of, kind_of, load_all
from fedquilt.experiment.round_due import is_due
from fedquilt.experiment.trial_pass import try_out
from fedquilt.experiment.vertical_rows import Rows, vertical_record
from fedquilt.models.loaded import Loaded

UNKNOWN = -1
"""The label of a row whose label its party does not know."""


def dealing_of(config: Config) -> Dealing:
    """How rows are dealt, from the settings of ``partition.scheme = "vertical"``.

    Raises
    ------
    ConfigError
        with every wrong setting.
    """
    return Dealing(**arguments(Dealing, config.partition.settings, prefix="partition"))


def built_vertical(config: Config, *, on_site: bool = False, planned: bool = False) -> Experiment:
    """The experiment of a vertical federation.

    Parameters
    ----------
    config
        The run file.
    on_site
        Whether it is built by a passive party: the active party's model has shapes only, and labels are not kept.
    planned
        Whether shapes are all that is wanted.
    """
    method, parts, dealing = chosen(config), party_parts(config), dealing_of(config)
    refuse_contradictions(config, parts[:-1], method)
    device_of(config.device)
    rng = Rng(config.seed)
    rows = rows_of(config, parts, dealing, rng, together=method.traits.complete)
    return assembled(config, method, parts, dealing.width, rows, rng, on_site=on_site, planned=planned)


def rows_of(config: Config, parts: Sequence[Part], dealing: Dealing, rng: Rng, *, together: bool = False) -> Rows:
    """Read the source as each party sees it, and deal its rows.

    Parameters
    ----------
    config, parts
        The run file and its parties.
    dealing, rng
        How rows are dealt, and the random stream of the run.
    together
        Whether all rows are aligned, for a method that sees all columns.

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
                held[key] = read(part.config, rng)
            table, test = held[key]
            assert table is not None, "the rows of simulated parties are of one source"
            tables.append(seen_by(part, table))
            tests += [] if test is None else [seen_by(part, test)]
    first = next(iter(held.values()))[0]
    assert first is not None
    assert first.labels is not None, "tables of a classification task have labels"
    labels = first.labels.numpy()
    own = [Held(part.party.classes, part.party.unaligned) for part in parts if part.party is not None]
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


def form_of_party(part: Part, outputs: tuple[str, ...], rows: Rows, number: int) -> Form:
    """What of the data the form of a party's encoder depends on; it fits its columns on its own rows alone."""
    cells, data = rows.tables[number].inputs, part.config.data
    if not isinstance(cells, Cells):
        return Form(outputs)
    own = np.sort(np.concatenate([rows.dealt.aligned, rows.dealt.unaligned[number]]))
    ranges = {name: span for name, span in data.ranges.items() if name in cells.names}
    categories = {name: values for name, values in data.categories.items() if name in cells.names}
    return Form(outputs, fit(cells, own, ranges=ranges, categories=categories))


def assembled(
    config: Config,
    method: Chosen,
    parts: Sequence[Part],
    width: int,
    rows: Rows,
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
    width
        Length of an embedding.
    rows, rng
        The rows, and the random stream of the run.
    on_site, planned
        Whether it is built by a passive party, and whether shapes are all that is wanted.
    """
    outputs = tuple(f"embedding {number}" for number in range(width))
    forms = {part.place: form_of_party(part, outputs, rows, number) for number, part in enumerate(parts)}
    real = [] if planned else [part.place for part in parts if not (on_site and part.is_server)]
    loaded = load_all(parts, forms, rng, meta=planned, real=real)
    names = architectures(parts, [kind_of(part, forms[part.place]) for part in parts], loaded)
    depths = {name: model.blocks.num_layers for name, model in zip(names, loaded, strict=True)}
    works: dict[str, Work] = {}
    for part, name, model in zip(parts, names, loaded, strict=True):
        if name not in works:
            meta = next(model.model.parameters()).is_meta
            device = torch.device("meta") if meta else device_of(config.device)
            with naming_groups(part):
                works[name] = work_of(part.config, model, host_of(part.config, model, name, depths), device, rng)
    made = [
        _party(part, works[name], rows, number) for number, (part, name) in enumerate(zip(parts, names, strict=True))
    ]
    groups, clients = tuple(group for group, _ in made[:-1]), {client.id: client for _, client in made[:-1]}
    owner, active = made[-1]
    profiles = tuple(client.profile for client in clients.values())
    passive = {name: works[name] for name in names[:-1]}
    labels = torch.from_numpy(rows.labels[rows.dealt.aligned])
    vertical = Vertical(
        active=active,
        layout=owner.layout,
        initial=owner.put.start,
        classes=rows.classes,
        width=width,
        parties=tuple(part.label for part in parts),
        labels=torch.zeros_like(labels) if on_site else labels,
        test_labels=torch.zeros(0, dtype=torch.long) if on_site else torch.from_numpy(rows.test_labels),
        due=partial(is_due, config),
    )
    federation = replace(federated(config, profiles, passive, groups), vertical=vertical)
    make_method = partial(wrapped, config, method, tuple(parts[:-1]), names[:-1])
    record = vertical_record(rows, profiles, groups, parts[-1].label)
    traits = method.traits
    whole = Experiment(config, federation, make_method, make_method(federation), traits, clients, groups, owner, record)
    return whole.modelled()


def _party(part: Part, work: Work, rows: Rows, number: int) -> tuple[BuiltGroup, Client]:
    """A party as a group of one, and its worker."""
    config, party, dealt = part.config, part.party, rows.dealt
    assert party is not None, "the part is of a vertical federation"
    own, count = rows.labels.copy(), len(dealt.aligned) + len(dealt.unaligned[number])
    for row, wrong in dealt.noisy.items():
        own[row] = wrong
    if not party.labelled:
        own[:] = UNKNOWN
    name, model = config.model.name, work.loaded
    budget = Budget(work.bench.layout.num_layers)
    profile = Profile(part.first, count, work.bench.layout.architecture, budget, config.model.task, part.label)
    if part.is_server:
        profile = replace(profile, id=SERVER)
    client = Client(profile, work.bench, work.first, config.training, config.rounds, NO_ROWS)
    client = replace(client, batch_size=config.evaluation.batch_size)
    if work.bench.device.type == "meta":
        train, aligned, test = (_shape(count) for count in _sizes(rows, number))
    else:
        columns = _encoded(model, rows.tables[number])
        tested = columns if rows.tests is None else _encoded(model, rows.tests[number])
        train = take(columns, dealt.unaligned[number]) | {"labels": torch.from_numpy(own[dealt.unaligned[number]])}
        aligned = take(columns, dealt.aligned)
        test = take(tested, dealt.test) if rows.tests is None else tested
        try_out(work.bench, columns, name)
    client = replace(client, train=train, splits={ALIGNED: aligned, TEST: test})
    beside = (
        client if part.is_server else replace(client, profile=replace(profile, id=SERVER), train=NO_ROWS, splits={})
    )
    ids = range(part.first, part.first + (not part.is_server))
    group = BuiltGroup(part.label, ids, config, profile.architecture, model, work.put, work.bench, beside)
    return group, client


def _sizes(rows: Rows, number: int) -> tuple[int, int, int]:
    """The numbers of a party's unaligned, aligned and test rows."""
    return len(rows.dealt.unaligned[number]), len(rows.dealt.aligned), len(rows.test_labels)


def _encoded(loaded: Loaded, table: Table) -> Columns:
    """The rows as the encoder reads them, without labels: those are no outputs of the encoder."""
    nothing = torch.zeros(len(table), dtype=torch.long)
    columns = loaded.encode(replace(table, labels=nothing, classes=loaded.outputs.classes))
    return {**columns, "labels": torch.full((len(table),), UNKNOWN)}


def _shape(count: int) -> Columns:
    return {"labels": torch.zeros(count, dtype=torch.long)}
