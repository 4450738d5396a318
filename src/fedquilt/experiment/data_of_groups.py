"""Data of a federation of groups: groups without their own data share that of the run file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fedquilt.config.data import idle_keys
from fedquilt.config.groups import Part
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError, FedquiltError
from fedquilt.core.rng import Rng
from fedquilt.core.tasks import TASKS
from fedquilt.core.types import ClientId
from fedquilt.data.table import Table
from fedquilt.experiment.data import AssignedRows, assign, check_kind
from fedquilt.experiment.features import SITES


@dataclass(frozen=True)
class DataSource:
    """Data that is partitioned over the clients of one group, or of all groups without their own data.

    ``config`` describes a federation of only these clients; their numbers are those in the whole federation.
    """

    parts: tuple[Part, ...]
    config: Config

    @property
    def ids(self) -> tuple[ClientId, ...]:
        return tuple(id for part in self.parts for id in part.ids)

    def stream(self, rng: Rng) -> Rng:
        """The random stream for reading and partitioning, so that one group's data does not affect another's rows."""
        (first, *others) = self.parts
        if first.is_server:
            return rng.child("server")
        return rng.child("group", first.label) if "data" in first.own and not others else rng

    def read(
        self, read: Callable[..., Any], rng: Rng, here: Collection[ClientId] | None
    ) -> tuple[Table | None, Table | None]:
        """The rows to partition and the common test rows, checked to fit the task of every group.

        ``read`` is ``data.read``.
        """
        tasks = {part.config.model.task for part in self.parts}
        if problems := idle_keys(self.config.data, tasks, self.config.partition.scheme):
            raise ConfigError(problems)
        table, test = read(self.config, self.stream(rng), self.here(here))
        for part in self.parts:
            with naming_groups(part):
                if table is not None:
                    check_kind(part.config, table, "source", part.config.data.source)
        return table, test

    def assign(
        self, table: Table | None, test: Table | None, rng: Rng, here: Collection[ClientId] | None
    ) -> AssignedRows:
        """Assign the rows to the clients of this source, by their numbers in the whole federation."""
        assigned = assign(self.config, table, test, self.stream(rng), self.here(here))
        if self.config.partition.scheme == SITES:
            return assigned
        return replace(assigned, splits=assigned.splits.numbered(self.ids))

    def here(self, here: Collection[ClientId] | None) -> tuple[ClientId, ...] | None:
        """The clients of this source that are ``here``, if each client has its own source; None if they share one."""
        if self.config.partition.scheme != SITES:
            return None
        return tuple(id for id in self.ids if here is None or id in here)


def data_sources(config: Config, parts: Sequence[Part]) -> tuple[DataSource, ...]:
    """The data sources and their groups; the groups without their own data come first and share the file's."""
    if not config.groups:
        return (DataSource(tuple(parts), config),)
    common = tuple(part for part in parts if config.groups[part.place].data is None)
    own = [DataSource((part,), part.config) for part in parts if config.groups[part.place].data is not None]
    if not common:
        return tuple(own)
    # a group that needs labels determines how the rows are read
    reader = next((part for part in common if TASKS[part.config.model.task].has_classes), common[0])
    num = sum(len(part.ids) for part in common)
    together = {"partition": config.partition.model_copy(update={"num_clients": num}), "model": reader.config.model}
    return DataSource(common, config.model_copy(update=together)), *own


@contextmanager
def naming_groups(*parts: Part) -> Iterator[None]:
    """Reword errors raised inside so that they name the keys of these groups, in [[groups]] or in the file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([_reworded(problem, parts) for problem in error.problems]) from error
    except FedquiltError as error:
        raise type(error)(_reworded(str(error), parts)) from error


def _reworded(problem: str, parts: Sequence[Part]) -> str:
    labels = ", ".join(f"'{part.label}'" for part in parts if part.label)
    section = problem.partition(".")[0]
    if not labels or re.match(
        r"groups?[ \[]|parties|server\.", problem
    ):  # there are no groups, or the problem names one already
        return problem
    if len(parts) > 1:
        if section in ("data", "partition"):  # they share the file's
            return problem
        return f"{_what(parts[0])} {labels}: " + re.sub(
            r"clients\.(budget|rank)s(\[[0-9]+\])?", r"the groups' \1", problem
        )
    where = parts[0].key
    problem = re.sub(r"clients\.(budget|rank)s(\[0\])?", rf"{where}.\1", problem)
    if problem.startswith(where):
        return problem
    if section in parts[0].own:
        return f"{where}.{problem}"
    return (
        f"{'the server' if parts[0].is_server and parts[0].party is None else f'{_what(parts[0])} {labels}'}: {problem}"
    )


def _what(part: Part) -> str:
    return "group" if part.party is None else "party"
