"""Groups of clients, and the server as an owner of a model: checks of their keys, and the config of each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ValidationError

from fedquilt.adapters.settings import Adapter
from fedquilt.config.clients import Partition
from fedquilt.config.data import Data, idle_keys
from fedquilt.config.error_text import from_validation, shown
from fedquilt.config.own_sections import OWN_SECTIONS, own_keys
from fedquilt.config.parties import Party, active_place
from fedquilt.config.schema import Config, Group
from fedquilt.config.sections import default_of, read
from fedquilt.config.server import Server, chat_problems, endpoint_problems
from fedquilt.core.errors import ConfigError
from fedquilt.core.model import Model
from fedquilt.core.tasks import TASKS, one_of, tasks_where, writing_task

_SAID_BY_GROUPS = {"shares": "share", "budgets": "budget", "ranks": "rank"}
_OF_ALL = ("proximal", "precision")


_SERVER = -1  # the place of the server's part


@dataclass(frozen=True)
class Part:
    """One group of a config; without [[groups]] there is one with an empty label and the whole config.

    The server, if it owns a model, is a part without clients, see ``server_parts``.

    Attributes
    ----------
    place : its number in the file, from 0; -1 for the server.
    label : its label.
    first : the number of its first client.
    config : the config of a federation of only its clients.
    own : the sections in which it sets keys itself.
    party : what it is in a vertical federation; None in any other.
    """

    place: int
    label: str
    first: int
    config: Config
    own: frozenset[str] = frozenset()
    party: Party | None = None

    @property
    def ids(self) -> range:
        return range(self.first, self.first + self.config.partition.num_clients)

    @property
    def is_server(self) -> bool:
        """Whether it is the server."""
        return self.place == _SERVER

    @property
    def key(self) -> str:
        """The key of its table in the run file."""
        if self.party is not None:
            return f"parties[{self.config.parties.index(self.party)}]"
        return "server" if self.is_server else f"groups[{self.place}]"


def parts(config: Config) -> tuple[Part, ...]:
    """The groups of a config, in their order.

    Raises
    ------
    ConfigError
        with every contradiction between [[groups]] and the rest of the file.
    """
    if config.parties:
        return tuple(part for part in party_parts(config) if not part.is_server)
    if not config.groups:
        return (Part(0, "", 0, config),)
    if problems := group_problems(config):
        raise ConfigError(problems)
    made: list[Part] = []
    first = 0
    for place, (group, size) in enumerate(zip(config.groups, sizes(config), strict=True)):
        own = frozenset(name for name in (*OWN_SECTIONS, "model", "data") if getattr(group, name) is not None)
        made.append(Part(place, group.label, first, _alone(config, group, size), own))
        first += size
    return tuple(made)


def party_parts(config: Config) -> tuple[Part, ...]:
    """The parties of a vertical federation as parts of one client each, and the active one, the server, behind them."""
    active, made = active_place(config.parties), list[Part]()
    for place, party in enumerate(config.parties):
        over = {name: read(OWN_SECTIONS[name], keys, name) for name, keys in own_keys(config, party).items()}
        over |= {} if party.model is None else {"model": party.model}
        over["data"] = config.data if party.text is None else config.data.model_copy(update={"text": party.text})
        is_server = place == active
        over["partition"] = config.partition.model_copy(update={"num_clients": 0 if is_server else 1})
        own = frozenset(name for name in ("model", "adapter", "training") if getattr(party, name) is not None)
        alone = config.model_copy(update=over)
        number = len(config.parties) - 1 if is_server else place - (place > active)
        made.append(Part(_SERVER if is_server else number, party.label, number, alone, own, party))
    return tuple(sorted(made, key=lambda part: part.first))


def server_parts(config: Config) -> tuple[Part, ...]:
    """The server as a part without clients, with the rows that it trains on as data; empty if it owns no model.

    An endpoint is no model: see ``endpoint_parts``. In a vertical federation it is the active party.

    Raises
    ------
    ConfigError
        with every contradiction between [server] and the rest of the file.
    """
    if config.parties:
        return party_parts(config)[-1:]
    if config.server is None:
        return ()
    if problems := server_problems(config):
        raise ConfigError(problems)
    server, num = config.server, config.partition.num_clients
    if server.model is None:
        return ()
    over = {name: read(OWN_SECTIONS[name], keys, name) for name, keys in own_keys(config, server).items()}
    over["partition"] = Partition().model_copy(update={"num_clients": 0})
    batch_size = server.batch_size or config.evaluation.batch_size
    over["evaluation"] = config.evaluation.model_copy(update={"batch_size": batch_size})
    over |= {"model": server.model, "data": server.private or server.data, "groups": ()}
    own = frozenset({"model", "data", *(name for name in OWN_SECTIONS if getattr(server, name, None) is not None)})
    return (Part(_SERVER, "server", num, config.model_copy(update=over), own),)


def endpoint_parts(config: Config) -> tuple[Part, ...]:
    """The server as a part with the public questions as data and a name in place of a model; only for an endpoint."""
    server = config.server
    if server is None or server.endpoint is None or server.model is not None:
        return ()
    over = {"model": Model(server.endpoint.name, writing_task()), "data": server.data, "groups": ()}
    own = frozenset({"model", "data"})
    return (Part(_SERVER, "server", config.partition.num_clients, config.model_copy(update=over), own),)


def server_problems(config: Config) -> list[str]:
    """Every contradiction between [server] and the rest of the file; keys that are spoilt are skipped."""
    server, rejected = config.server, config.spoilt.in_server()
    if server is None or () in rejected:
        return []
    problems = endpoint_problems(server, rejected) + chat_problems(server, rejected)
    if server.model is None:
        return problems
    if not rejected.touches("model") and TASKS[server.model.task].reads != "text":
        problems.append(
            f"server.model.task = '{server.model.task}': the server's questions are texts; take a task of a model of "
            f"text: {one_of(tasks_where(lambda task: task.reads == 'text'))}"
        )
    for name in ("data", "private"):
        own = getattr(server, name)
        if own is None or rejected.touches(name):
            continue
        given = [key for key in ("proxy", "group") if getattr(own, key) != default_of(Data, key)]
        problems += [
            f"server.{name}.{key} = {shown(getattr(own, key))}: the server's rows are not dealt to anyone; leave it out"
            for key in given
        ]
        problems += [
            f"server.{problem.replace('data.', f'{name}.', 1)}"
            for problem in idle_keys(own, {server.model.task}, "natural")
            if not rejected.touches("model")
        ]
    if server.private is not None and not rejected.touches("private", "data"):
        problems += [
            f"server.data.{key} = {shown(getattr(server.data, key))}: the server is scored on the test rows of "
            "server.private; set it there, or leave it out"
            for key in ("test", "test_limit")
            if getattr(server.data, key) is not None
        ]
    problems += [
        f"groups[{place}].label = 'server': is the name of the server's own row in tables; give the group another one"
        for place, group in enumerate(config.groups)
        if group.label == "server"
    ]
    problems += _of_all(server.training, "server")
    either = [name for name in OWN_SECTIONS if config.spoilt.touches(name) or rejected.touches(name)]
    return problems + _odd_sections(config, server, "server", either)


def sizes(config: Config) -> tuple[int, ...]:
    """Clients of each group: its share of ``partition.num_clients``, rounded down; the last group gets the rest."""
    total = sum(group.share for group in config.groups)
    num = config.partition.num_clients
    counts = [int(Fraction(group.share, total) * num) for group in config.groups[:-1]]
    return (*counts, num - sum(counts))


def group_problems(config: Config) -> list[str]:
    """Every contradiction between [[groups]] and the rest of the file; keys that are spoilt are skipped."""
    if not config.groups:
        return []
    problems = [
        f"clients.{key} = {shown(_plain(getattr(config.clients, key)))}: with [[groups]] each group says its own "
        f"{word}; leave it out"
        for key, word in _SAID_BY_GROUPS.items()
        if key in config.clients.model_fields_set
    ]
    counts, seen = sizes(config), set()
    spoilt = config.spoilt
    rejected = [spoilt.in_group(place) for place in range(len(config.groups))]
    unsure = spoilt.touches("partition.num_clients") or any(own.touches("share") for own in rejected)
    if min(counts) < 1 and not unsure:
        problems.append(
            f"partition.num_clients = {config.partition.num_clients}: makes groups of {', '.join(map(str, counts))} "
            "clients, and each needs at least one; use more clients or other shares"
        )
    for place, group in enumerate(config.groups):
        where = f"groups[{place}]"
        if group.label in seen and not rejected[place].touches("label"):
            problems.append(f"{where}.label = '{group.label}': stands twice; give every group a label of its own")
        seen.add(group.label)
        if group.partition is not None and group.data is None and not rejected[place].touches("data"):
            problems.append(
                f"{where}.partition: the group has no data of its own to deal; give it data, or leave this out"
            )
        if group.partition is not None and "num_clients" in group.partition.model_fields_set:
            problems.append(
                f"{where}.partition.num_clients = {group.partition.num_clients}: comes of the group's share of "
                "partition.num_clients; leave it out"
            )
        problems += _of_all(group.training, where)
        either = [name for name in OWN_SECTIONS if spoilt.touches(name) or rejected[place].touches(name)]
        problems += _odd_sections(config, group, where, either)
        if group.rank is None or "adapter" in either:
            continue
        adapter = own_keys(config, group)["adapter"]
        rank = max(adapter.get("rank", default_of(Adapter, "rank")), *adapter.get("rank_pattern", {}).values(), 1)
        if group.rank > rank:
            problems.append(
                f"{where}.rank = {group.rank}: is more than the {rank} of the server's adapters; raise adapter.rank "
                f"to {group.rank}"
            )
    return problems


def _of_all(training: BaseModel | None, where: str) -> list[str]:
    """Problems with keys of [training] that one group or the server cannot set for itself."""
    return [
        f"{where}.training.{key} = {shown(getattr(training, key))}: is one for all groups; set it in [training]"
        for key in _OF_ALL
        if training is not None and key in training.model_fields_set
    ]


def _odd_sections(config: Config, owner: Group | Party | Server, where: str, unknown: Collection[str]) -> list[str]:
    problems: list[str] = []
    for name, keys in own_keys(config, owner).items():
        if name in unknown:
            continue
        try:
            read(OWN_SECTIONS[name], keys, name)
        except ValidationError as error:
            problems += from_validation(error, prefix=where)
    return problems


def _alone(config: Config, group: Group, size: int) -> Config:
    """The config of a federation of only the group's clients."""
    over = {name: read(OWN_SECTIONS[name], keys, name) for name, keys in own_keys(config, group).items()}
    whole = {name: own for name in ("model", "data") if (own := getattr(group, name)) is not None}
    over["partition"] = over["partition"].model_copy(update={"num_clients": size})
    ranks = None if group.rank is None else (group.rank,)
    clients = config.clients.model_copy(update={"shares": "1", "budgets": (group.budget,), "ranks": ranks})
    return config.model_copy(update={**whole, **over, "clients": clients, "groups": ()})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
