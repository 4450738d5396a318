"""What is dealt in a federation of groups: the file's data to all groups without any of their own, and theirs."""

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
from fedquilt.experiment.data import SITES, Dealt, check_kind, deal


@dataclass(frozen=True)
class Source:
    """Data that is dealt to the clients of one group, or of all groups without data of their own.

    ``config`` is that of a federation of these clients alone; the clients' numbers are those of the whole.
    """

    parts: tuple[Part, ...]
    config: Config

    @property
    def ids(self) -> tuple[ClientId, ...]:
        return tuple(id for part in self.parts for id in part.ids)

    def stream(self, rng: Rng) -> Rng:
        """The stream that reading and dealing draw from: what one group's data are moves no other group's rows."""
        own = len(self.parts) == 1 and "data" in self.parts[0].own
        return rng.child("group", self.parts[0].label) if own else rng

    def read(
        self, read: Callable[..., Any], rng: Rng, here: Collection[ClientId] | None
    ) -> tuple[Table | None, Table | None]:
        """The rows that are dealt and the separate test rows, held to be what every group's task needs.

        ``read`` is ``deal.read``.
        """
        tasks = {part.config.model.task for part in self.parts}
        if problems := idle_keys(self.config.data, tasks, self.config.partition.scheme):
            raise ConfigError(problems)
        table, test = read(self.config, self.stream(rng), self.here(here))
        for part in self.parts:
            with told_of(part):
                if table is not None:
                    check_kind(part.config, table, "source", part.config.data.source)
        return table, test

    def deal(self, table: Table | None, test: Table | None, rng: Rng, here: Collection[ClientId] | None) -> Dealt:
        """The rows dealt to the clients of this source, by their numbers in the whole federation."""
        dealt = deal(self.config, table, test, self.stream(rng), self.here(here))
        if self.config.partition.scheme == SITES:
            return dealt
        ids = self.ids
        return replace(dealt, splits={ids[place]: split for place, split in dealt.splits.items()})

    def here(self, here: Collection[ClientId] | None) -> tuple[ClientId, ...] | None:
        """The clients, of those ``here``, that this source has rows of its own for; None where one source is dealt."""
        if self.config.partition.scheme != SITES:
            return None
        return tuple(id for id in self.ids if here is None or id in here)


def sources(config: Config, parts: Sequence[Part]) -> tuple[Source, ...]:
    """What is dealt, and to which groups; the groups without data of their own come first and share the file's."""
    if not config.groups:
        return (Source(tuple(parts), config),)
    common = tuple(part for part in parts if config.groups[part.place].data is None)
    own = [Source((part,), part.config) for part in parts if config.groups[part.place].data is not None]
    if not common:
        return tuple(own)
    # whose labels matter says how the rows are read
    reader = next((part for part in common if TASKS[part.config.model.task].has_classes), common[0])
    num = sum(len(part.ids) for part in common)
    together = {"partition": config.partition.model_copy(update={"num_clients": num}), "model": reader.config.model}
    return Source(common, config.model_copy(update=together)), *own


@contextmanager
def told_of(*parts: Part) -> Iterator[None]:
    """What is wrong inside is told by the keys of the group, which it says itself or has from the file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([_reworded(problem, parts) for problem in error.problems]) from error
    except FedquiltError as error:
        raise type(error)(_reworded(str(error), parts)) from error


def _reworded(problem: str, parts: Sequence[Part]) -> str:
    labels = ", ".join(f"'{part.label}'" for part in parts if part.label)
    section = problem.partition(".")[0]
    if not labels or re.match(r"groups?[ \[]", problem):  # there are no groups, or it is said already
        return problem
    if len(parts) > 1:
        if section in ("data", "partition"):  # they share the file's
            return problem
        return f"group {labels}: " + re.sub(r"clients\.(budget|rank)s(\[[0-9]+\])?", r"the groups' \1", problem)
    where = f"groups[{parts[0].place}]"
    problem = re.sub(r"clients\.(budget|rank)s(\[0\])?", rf"{where}.\1", problem)
    if problem.startswith(where):
        return problem
    return f"{where}.{problem}" if section in parts[0].own else f"group {labels}: {problem}"
