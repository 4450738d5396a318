"""Groups of clients: checks of [[groups]], and the config of each group."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ValidationError

from fedquilt.adapters.settings import Adapter, of_kind
from fedquilt.config.clients import Partition
from fedquilt.config.error_text import from_validation, shown
from fedquilt.config.schema import Config, Group, Head
from fedquilt.config.sections import Section, default_of, read, values_of
from fedquilt.core.errors import ConfigError
from fedquilt.core.training import Training

_SECTIONS: Mapping[str, Section] = {
    "partition": Partition,
    "adapter": Adapter,
    "head": Head,
    "training": Training,
}
"""Sections in which a group replaces single keys; it replaces ``model`` and ``data`` as a whole."""

_SAID_BY_GROUPS = {"shares": "share", "budgets": "budget", "ranks": "rank"}
_OF_ALL = ("proximal", "precision")


@dataclass(frozen=True)
class Part:
    """One group of a config; without [[groups]] there is one with an empty label and the whole config.

    Attributes
    ----------
    place : its number in the file, from 0.
    label : its label.
    first : the number of its first client.
    config : the config of a federation of only its clients.
    own : the sections in which it sets keys itself.
    """

    place: int
    label: str
    first: int
    config: Config
    own: frozenset[str] = frozenset()

    @property
    def ids(self) -> range:
        return range(self.first, self.first + self.config.partition.num_clients)


def parts(config: Config) -> tuple[Part, ...]:
    """The groups of a config, in their order.

    Raises
    ------
    ConfigError
        with every contradiction between [[groups]] and the rest of the file.
    """
    if not config.groups:
        return (Part(0, "", 0, config),)
    if problems := group_problems(config):
        raise ConfigError(problems)
    made: list[Part] = []
    first = 0
    for place, (group, size) in enumerate(zip(config.groups, sizes(config), strict=True)):
        own = frozenset(name for name in (*_SECTIONS, "model", "data") if getattr(group, name) is not None)
        made.append(Part(place, group.label, first, _alone(config, group, size), own))
        first += size
    return tuple(made)


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
        own = group.training
        problems += [
            f"{where}.training.{key} = {shown(getattr(own, key))}: is one for all groups; set it in [training]"
            for key in _OF_ALL
            if own is not None and key in own.model_fields_set
        ]
        either = [name for name in _SECTIONS if spoilt.touches(name) or rejected[place].touches(name)]
        problems += _odd_sections(config, group, where, either)
        if group.rank is None or "adapter" in either:
            continue
        adapter = _over(config, group)["adapter"]
        rank = max(adapter.get("rank", default_of(Adapter, "rank")), *adapter.get("rank_pattern", {}).values(), 1)
        if group.rank > rank:
            problems.append(
                f"{where}.rank = {group.rank}: is more than the {rank} of the server's adapters; raise adapter.rank "
                f"to {group.rank}"
            )
    return problems


def _odd_sections(config: Config, group: Group, where: str, unknown: Collection[str]) -> list[str]:
    problems: list[str] = []
    for name, keys in _over(config, group).items():
        if name in unknown:
            continue
        try:
            read(_SECTIONS[name], keys, name)
        except ValidationError as error:
            problems += from_validation(error, prefix=where)
    return problems


def _alone(config: Config, group: Group, size: int) -> Config:
    """The config of a federation of only the group's clients."""
    over = {name: read(_SECTIONS[name], keys, name) for name, keys in _over(config, group).items()}
    whole = {name: own for name in ("model", "data") if (own := getattr(group, name)) is not None}
    over["partition"] = over["partition"].model_copy(update={"num_clients": size})
    ranks = None if group.rank is None else (group.rank,)
    clients = config.clients.model_copy(update={"shares": "1", "budgets": (group.budget,), "ranks": ranks})
    return config.model_copy(update={**whole, **over, "clients": clients, "groups": ()})


def _over(config: Config, group: Group) -> dict[str, dict[str, Any]]:
    """The keys of each section that a group may change in part, with the group's own values."""
    made = {}
    for name in _SECTIONS:
        own: BaseModel | None = getattr(group, name)
        keys, change = values_of(getattr(config, name)), {} if own is None else own.model_dump(exclude_unset=True)
        if name == "training" and not change.keys().isdisjoint(("steps", "epochs")):
            keys |= {"steps": None, "epochs": None}
        if name == "partition" and change.get("scheme", keys["scheme"]) != keys["scheme"]:
            keys = {key: value for key, value in keys.items() if key in Partition.model_fields}
        if name == "adapter":
            keys = of_kind(keys, change.get("kind", keys["kind"]))
        made[name] = keys | change
    return made


def as_written(groups: tuple[Group, ...]) -> list[dict[str, Any]]:
    """The groups as JSON values; of sections that a group changes in part, only the keys that it sets."""
    return [
        {
            **group.model_dump(mode="json", exclude=set(_SECTIONS), exclude_none=True),
            **group.model_dump(mode="json", include=set(_SECTIONS), exclude_unset=True, exclude_none=True),
        }
        for group in groups
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
