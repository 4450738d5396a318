"""Finding all problems of a config at once, without loading weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import replace
from functools import partial
from typing import Any

from fedquilt.config.clients import Partition
from fedquilt.config.data import Data
from fedquilt.config.groups import Part, endpoint_parts, parts, server_parts
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, FedquiltError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import Budget, ClientId
from fedquilt.data.look import absent_columns
from fedquilt.data.partition import settings_problems
from fedquilt.data.table import Table
from fedquilt.experiment.budgets import budgets_of, check_part
from fedquilt.experiment.build import joined, tables_of
from fedquilt.experiment.compatibility import refuse_contradictions
from fedquilt.experiment.cut_rows import notes_on, notes_on_missing
from fedquilt.experiment.data import NODE, AssignedRows, read
from fedquilt.experiment.data_of_groups import DataSource, data_sources, naming_groups
from fedquilt.experiment.features import SITES
from fedquilt.experiment.method import chosen
from fedquilt.experiment.models import Form, device_of, form_of, load, load_all, max_new_tokens
from fedquilt.experiment.server import refuse_unusable, server_rows
from fedquilt.experiment.trackers import refuse_missing
from fedquilt.experiment.vertical import built_vertical
from fedquilt.experiment.vertical_notes import notes_on_parties

Known = dict[Hashable, tuple[Any, FedquiltError | None]]
"""Results, or errors, of reading data and trying models, by what was read or tried."""

_OF_GROUPS = ("groups", "partition", "adapter", "head", "training")
_RULES = (
    *("groups", "method", "model", "adapter", "aggregation", "training", "evaluation", "defence", "privacy"),
    "network",
)
"""Sections that are checked for contradictions with one another."""


_ANY_DEPTH = 1
"""Stands for the depth of a model that is not known yet: what clients a group has does not depend on it."""


class _Found:
    """The problems found so far."""

    def __init__(self) -> None:
        self.problems: dict[str, None] = {}

    def attempt(self, step: Callable[[], Any], *of: Part) -> Any:
        """The result of ``step``, or None after noting the problems that it raises."""
        try:
            with naming_groups(*of):
                return step()
        except ConfigError as error:
            self.problems |= dict.fromkeys(error.problems)
        except FedquiltError as error:
            self.problems[str(error)] = None
        return None


def check(
    config: Config,
    known: Known | None = None,
    here: Collection[ClientId] | None = None,
    notes: list[str] | None = None,
) -> list[str]:
    """All problems of a config, without loading weights: settings, data, partition, model shape, budgets, method.

    ``known``, if given, caches the data that was read and the models that were tried, so that several configs share
    them. ``here`` are the clients whose own rows are on this machine, None for all. Remarks that are no problems, such
    as the number of truncated rows, are added to ``notes``. Keys that are ``spoilt`` have been reported already: they
    are skipped, and so is everything that depends on them.
    """
    found, rng, spoilt, known = _Found(), Rng(config.seed), config.spoilt, {} if known is None else known
    if config.parties:
        if not spoilt:
            found.attempt(lambda: _checked_parties(config, known, here, [] if notes is None else notes))
        return list(found.problems)
    method = None if spoilt.touches("method.name") else found.attempt(lambda: chosen(config))
    unsure = bool(config.groups) and spoilt.touches(*_OF_GROUPS)
    groups = () if unsure else found.attempt(lambda: parts(config)) or ()
    forms: dict[int, Form] = {}
    rows: dict[int, Table | None] = {}
    for source in () if config.groups and not groups else data_sources(config, groups):
        table, assigned = _checked_data(source, known, rng, here, found)
        unread = table is None and assigned is None
        for part in source.parts:
            if unread and TASKS[part.config.model.task].reads == "table":
                continue  # the width of its model follows from the rows
            form = found.attempt(partial(form_of, part.config, table, assigned), part)
            forms |= {} if form is None else {part.place: form}
        rows |= dict.fromkeys((part.place for part in source.parts), table)
        if notes is not None and table is not None:
            notes += notes_on_missing(table, source.config.data)
    found.attempt(lambda: device_of(config.device))
    found.attempt(lambda: refuse_missing(config.track))
    fitting: dict[int, tuple[Budget, ...]] = {}
    contradictory = False
    for part in groups:
        dealt = None
        if not spoilt.touches("clients.shares", "clients.budgets", "clients.ranks", "partition.num_clients"):
            dealt = found.attempt(partial(budgets_of, part, _ANY_DEPTH), part)
        if _lacks(config, part, "model") or part.place not in forms:
            continue
        which, make = _model_of(part, forms), partial(load, part.config, forms[part.place], rng, meta=True)
        tried = found.attempt(partial(_once, known, ("tried", which), partial(make, trial=True)), part)
        shape = tried or found.attempt(partial(_once, known, ("shape", which), make), part)
        if shape is None:
            continue
        if tried:
            seen, remarks = rows[part.place], partial(notes_on, part, tried.reading, rows[part.place])
            packing = part.config.training.packing
            said = found.attempt(partial(_once, known, ("notes", which, part.label, packing, id(seen)), remarks), part)
            if notes is not None:
                notes += said or ()
            if packing and tried.reading.try_packing:
                found.attempt(partial(_once, known, ("packing", which), tried.reading.try_packing), part)
        if dealt:
            found.attempt(partial(check_part, part, shape))
            depth = shape.blocks.num_layers  # with budgets that fit, so that other problems of the method are found too
            budgets = budgets_of(part, depth)
            fitting[part.place] = tuple(replace(budget, layers=min(budget.layers, depth)) for budget in budgets)
    owner = _checked_server(config, rng, forms, found)
    if method and groups and not spoilt.touches(*_RULES):
        said = len(found.problems)
        found.attempt(lambda: refuse_contradictions(config, groups, method))
        contradictory = len(found.problems) > said  # then the method cannot be made
    if method and groups and len(fitting) == len(groups) and owner is not None and not spoilt and not contradictory:
        every = (*groups, *owner)
        shapes = load_all(every, forms, rng, meta=True)
        found.attempt(lambda: joined(config, method, every, forms, shapes, rng, budgets=fitting))
    return list(found.problems)


def _checked_parties(config: Config, known: Known, here: Collection[ClientId] | None, notes: list[str]) -> None:
    """Build a vertical federation of shapes; what is to be said of its rows is added to ``notes``."""
    reader = partial(_read_once, known)
    notes += notes_on_parties(built_vertical(config, here, on_site=here is not None, planned=True, reader=reader))


def _checked_server(config: Config, rng: Rng, forms: dict[int, Form], found: _Found) -> tuple[Part, ...] | None:
    """The server's part, if it owns a model that can be loaded and rows that can be read; None after problems.

    Its form is added to ``forms``.
    """
    if config.server is not None and config.spoilt.touches("server", "adapter", "training"):
        return None
    owner = found.attempt(lambda: server_parts(config))
    for part in () if owner is None else endpoint_parts(config):
        found.attempt(partial(server_rows, part, rng))
        found.attempt(partial(refuse_unusable, config))
    for part in owner or ():
        rows = found.attempt(partial(server_rows, part, rng))
        if rows is None:
            return None
        forms[part.place] = form_of(part.config, rows.table)
        tried = partial(load, part.config, forms[part.place], rng, meta=True, trial=True)
        if found.attempt(tried, part) is None:
            return None
    return () if owner is None else tuple(owner)


def _read_once(known: Known, config: Config, rng: Rng) -> tuple[Table | None, Table | None]:
    """The rows of a config's source and its test rows; read once for all configs with this data and seed."""
    key = ("read", f"{config.data!r} {config.model.task} {config.seed}")
    tables: tuple[Table | None, Table | None] = _once(known, key, lambda: read(config, rng))
    return tables


def _once(known: Known, key: Hashable, step: Callable[[], Any]) -> Any:
    """What ``step`` returns or raises; it is called once for each key."""
    if key not in known:
        try:
            known[key] = step(), None
        except FedquiltError as error:
            known[key] = None, error
    made, wrong = known[key]
    if wrong is not None:
        raise wrong
    return made


def _model_of(part: Part, forms: dict[int, Form]) -> str:
    """A text of everything that the trial of a group's model depends on."""
    config = part.config
    about = (config.data.classes is not None, max_new_tokens(config), config.adapter.kind, config.head.policy)
    return f"{config.model!r} {forms[part.place]} {about} {config.seed}"


def method_problems(config: Config) -> list[str]:
    """The problems of a config's method and its settings alone."""
    found = _Found()
    if not config.spoilt.touches("method.name"):
        found.attempt(lambda: chosen(config))
    return list(found.problems)


def _lacks(config: Config, part: Part, section: str) -> bool:
    """Whether this section of a group, its own or the file's, has a key that is spoilt."""
    if config.spoilt.in_group(part.place).touches(section):
        return True
    return section not in part.own and config.spoilt.touches(section)


def _checked_data(
    source: DataSource, known: Known, rng: Rng, here: Collection[ClientId] | None, found: _Found
) -> tuple[Table | None, AssignedRows | None]:
    """The rows of a source and their assignment, None where that fails; notes problems of reading and partitioning."""
    config, own, spoilt = source.config, source.parts, source.config.spoilt
    odd: list[str] = []
    settings = [key for key in spoilt.under("partition") if key[1] not in Partition.model_fields]
    if not settings and not spoilt.touches("partition.scheme"):
        odd = settings_problems(config.partition.scheme, config.partition.settings)
        found.attempt(partial(_refuse, odd), *own)
    if any(_lacks(config, part, "data") for part in own):
        return None, None
    if spoilt.touches("model.task", "partition.scheme"):  # what does not depend on them is told all the same
        _note_absent_columns(config.data, found)
        return None, None
    key = f"{config.data!r} {config.partition!r} {config.model.task} {config.seed} {source.ids[:1]}"
    if here is None and config.data.source == NODE and config.partition.scheme == SITES:
        here = ()
    read = found.attempt(lambda: _once(known, key, lambda: tables_of(source, rng, here)), *own)
    if read is None:
        _note_absent_columns(config.data, found)
        return None, None
    assigned = None
    table: Table | None
    table, test = read
    if not odd and not spoilt.touches("partition"):
        dealt = ("dealt", key, source.ids, *(part.label for part in own))  # in a comparison the same for all methods
        assigned = found.attempt(lambda: _once(known, dealt, lambda: source.assign(table, test, rng, here)), *own)
    return table, assigned


def _note_absent_columns(data: Data, found: _Found) -> None:
    """Note columns that the file names and the data has not, of keys that no problem tells about yet."""
    told = "\n".join(found.problems)
    keys = ("text", "label", "group", "pair", "target", "image")
    named = {key: getattr(data, key) for key in keys if key in data.model_fields_set and f"data.{key}" not in told}
    if data.source != NODE and "{client}" not in data.source and any(named.values()):
        try:
            absent = absent_columns(data.source, {key: name for key, name in named.items() if name})
        except FedquiltError:
            return  # why it cannot be read is told by whoever reads its rows
        found.attempt(partial(_refuse, absent))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError(problems)
